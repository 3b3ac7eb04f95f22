"""The header of a card: which fields it takes, and what is refused before the Hub would refuse it."""

import pytest

from vistok.hub_cards.card_header import CARD_FIELDS, card_header, check_card_fields, validate_card


class TestFields:
    def test_good_ones_come_back(self):
        fields = {"title": "T", "language": ["en", "zh-Hant"], "limits": "Is small.", "tags": None}
        assert check_card_fields(fields) == fields

    def test_they_are_those_of_write_card(self):
        import inspect

        from vistok.hub_cards.card import write_card

        assert tuple(inspect.signature(write_card).parameters) == ("folder", "results", *CARD_FIELDS)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"titel": "x"}, "'titel' is no field of a card"),
            ({"title": 3}, "title of the card is 3, expected text"),
            ({"limits": [1]}, "expected text or a list of texts"),
            ({"language": "English"}, "'English', expected an ISO 639 code"),
        ],
    )
    def test_wrong_ones_are_refused_by_name(self, fields, message):
        with pytest.raises(ValueError, match=message):
            check_card_fields(fields)


class TestHeader:
    def header(self, fields=None, base_models=(), datasets=()) -> dict:
        data = card_header("name", "gvt", "image-text-to-text", fields or {}, base_models, datasets, [])
        return data.to_dict()

    def test_what_is_not_known_is_left_out(self):
        expected = {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": ["vistok", "gvt"]}
        assert self.header() == expected

    def test_data_of_several_sources_is_named_once(self):
        assert self.header(datasets=["org/set", "org/other", "org/set"])["datasets"] == ["org/set", "org/other"]

    def test_given_data_sets_take_their_place(self):
        assert self.header({"datasets": "org/set"}, datasets=["org/other"])["datasets"] == ["org/set"]


class TestValidation:
    def card(self, header: str, body: str = "# Title") -> str:
        return f"---\n{header}\n---\n\n{body}\n"

    def test_a_good_card_is_parsed(self):
        assert validate_card(self.card("license: mit")).data.license == "mit"

    @pytest.mark.parametrize(
        ("header", "body", "message"),
        [
            ("a: [1", "x", "header of the card is malformed"),
            ("- a", "x", "header of the card is malformed"),
            ("license: mit", "", "no text"),
            ("license: my-own", "x", "license is 'my-own'"),
            ("pipeline_tag: seeing", "x", "pipeline_tag is 'seeing'"),
            ("language: English", "x", "language is 'English'"),
            ("base_model: vistok:dinov2-small", "x", "base_model names 'vistok:dinov2-small'"),
            ("datasets: [a b]", "x", "datasets names 'a b'"),
            ("model-index: [{name: x}]", "x", "header of the card is malformed"),
            ("license: mit", "in /srv/ada/runs", "names a folder of a machine"),
            ("license: mit", "![a](missing.png)", r"shows missing\.png"),
        ],
    )
    def test_what_the_hub_would_refuse_is_refused(self, tmp_path, header, body, message):
        with pytest.raises(ValueError, match=message):
            validate_card(self.card(header, body), tmp_path)

    def test_a_card_without_a_header_is_refused(self):
        with pytest.raises(ValueError, match="expected a YAML header"):
            validate_card("# Title")
