"""Tables and pictures of tokens, on planted ones."""

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image

from vistok.evaluation.token_maps import TokenMap, score_spread, token_rows, write_token_table
from vistok.evaluation.token_pictures import draw_token_maps, inner_patch, token_colour, token_picture


def planted(**changes):
    assignment = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 1]])
    scores = np.arange(12.0).reshape(3, 4) / 10
    given = {"scores": scores, "centers": np.array([1, 6, 8]), "label": "threshold", "name": "a.jpg", "threshold": 0.5}
    return TokenMap(Image.new("RGB", (40, 30), "grey"), assignment, **{**given, **changes})


def planted_softly(**changes):
    """The second of three tokens has the largest weight nowhere."""
    weights = np.array([[[0.6, 0.2], [0.9, 0.0]], [[0.1, 0.3], [0.1, 0.0]], [[0.3, 0.5], [0.0, 1.0]]])
    given = {"weights": weights, "label": "soft", "name": "a.jpg", **changes}
    return TokenMap(Image.new("RGB", (40, 40), "grey"), np.array([[0, 2], [0, 2]]), **given)


class TestTables:
    def test_tokens_are_from_the_largest_to_the_smallest_with_their_places(self):
        rows = token_rows(planted())
        assert [row["token"] for row in rows] == [2, 1, 3]
        assert [row["patches"] for row in rows] == [5, 4, 3]
        assert rows[0]["share"] == pytest.approx(5 / 12, abs=1e-6)
        assert (rows[0]["top"], rows[0]["left"], rows[0]["bottom"], rows[0]["right"]) == (0, 2, 3, 4)
        assert (rows[1]["row"], rows[1]["column"]) == (1.0, 1.0)
        assert (rows[0]["peak_row"], rows[0]["peak_column"], rows[0]["peak_score"]) == (1, 2, 0.6)

    def test_csv_and_json_hold_the_same_tokens(self, tmp_path):
        maps = [planted(), planted(label="grid", scores=None, centers=None)]
        write_token_table(maps, tmp_path / "new" / "t.csv")
        write_token_table(maps, tmp_path / "t.json")
        with open(tmp_path / "new" / "t.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        documents = json.loads((tmp_path / "t.json").read_text())
        assert len(rows) == 6 and [document["num_tokens"] for document in documents] == [3, 3]
        found = [(document["variant"], token["token"]) for document in documents for token in document["tokens"]]
        assert [(row["variant"], int(row["token"])) for row in rows] == found
        assert rows[3]["peak_score"] == "" and documents[1]["spread_of_scores"] is None
        assert np.array_equal(np.array(documents[0]["assignment"]) - 1, planted().assignment)

    def test_another_ending_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"let it end with .csv or .json"):
            write_token_table([planted()], tmp_path / "t.xlsx")

    def test_the_spread_of_scores_is_described(self):
        found = score_spread(np.array([0.0, 1.0, 1.0, 2.0]))
        assert (found["mean"], found["max"], found["share_above_half_maximum"]) == (1.0, 2.0, 0.25)
        assert found["coefficient_of_variation"] == pytest.approx(np.sqrt(0.5))
        assert score_spread(np.zeros(4))["coefficient_of_variation"] == 0

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"scores": np.zeros((3, 3))}, r"scores are of shape \(3, 3\)"),
            ({"centers": np.zeros(2)}, "2 centres for 3 tokens"),
        ],
    )
    def test_what_does_not_fit_together_is_refused(self, changes, message):
        with pytest.raises(ValueError, match=message):
            planted(**changes)
        with pytest.raises(ValueError, match="without gaps"):
            TokenMap(Image.new("RGB", (4, 4)), np.array([[0, 2]]))


class TestSoftAssignment:
    def test_tokens_count_with_their_weights(self, tmp_path):
        soft = planted_softly()
        assert soft.num_tokens == 3 and soft.sizes.tolist() == pytest.approx([1.7, 0.5, 1.8])
        assert soft.mean_largest_weight == pytest.approx(0.75) and planted().mean_largest_weight is None
        rows = {row["token"]: row for row in token_rows(soft)}
        assert [row["patches"] for row in rows.values()] == [1.8, 1.7, 0.5]
        assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
        assert rows[2]["top"] is rows[2]["right"] is None and (rows[1]["top"], rows[1]["right"]) == (0, 1)
        assert rows[2]["column"] == pytest.approx((0.1 * 0.5 + 0.3 * 1.5 + 0.1 * 0.5) / 0.5)
        write_token_table([soft, planted()], tmp_path / "t.json")
        documents = json.loads((tmp_path / "t.json").read_text())
        assert [document["mean_largest_weight"] for document in documents] == [pytest.approx(0.75), None]

    def test_the_colour_of_a_patch_mixes_those_of_its_tokens(self, tmp_path):
        pytest.importorskip("matplotlib")
        picture = np.asarray(token_picture(planted_softly(), side=200)).astype(int)
        colours = np.array([token_colour(number) for number in range(3)])
        mixed = np.einsum("thw,tc->hwc", planted_softly().weights, colours)
        for row, column in ((0, 0), (1, 0)):
            tint = 0.66 * 128 + 0.34 * mixed[row, column]
            assert np.abs(picture[100 * row + 15, 15] - tint).max() <= 2
        draw_token_maps([planted_softly()], tmp_path / "t.png")
        draw_token_maps([planted_softly(), planted()], tmp_path / "both.png")
        assert (tmp_path / "t.png").stat().st_size > 10_000 < (tmp_path / "both.png").stat().st_size

    def test_weights_that_do_not_fit_are_refused(self):
        with pytest.raises(ValueError, match=r"weights are of shape \(3, 1, 4\)"):
            planted_softly(weights=np.ones((3, 1, 4)) / 3)
        with pytest.raises(ValueError, match="largest for other tokens"):
            planted_softly(weights=planted_softly().weights[::-1])


class TestPictures:
    def test_tokens_are_tinted_and_outlined_where_they_meet(self):
        picture = np.asarray(token_picture(planted(), side=400)).astype(int)
        assert picture.shape == (300, 400, 3)
        # patches are 100 pixels wide: their corners, away from numbers and lines
        for token, (row, column) in enumerate([(20, 20), (20, 380), (280, 20)]):
            tint = 0.66 * 128 + 0.34 * np.array(token_colour(token))
            assert np.abs(picture[row, column] - tint).max() <= 2
        assert (picture[30, 200] == 255).all()  # between the first token and the second
        assert (picture[30, 100] != 255).any()  # between two patches of the first

    def test_a_picture_has_the_proportions_of_its_image(self):
        wide = TokenMap(Image.new("RGB", (640, 320)), np.zeros((24, 24), int))
        width, height = token_picture(wide).size
        assert width / height == pytest.approx(2, rel=0.03)

    def test_numbers_stand_where_a_token_is_thickest(self):
        mask = np.zeros((7, 9), bool)
        mask[0] = True
        mask[2:7, 4:9] = True
        assert inner_patch(mask) == (4, 6, 3)
        assert inner_patch(np.ones((1, 1), bool)) == (0, 0, 1)

    def test_neighbouring_numbers_have_different_colours(self):
        colours = np.array([token_colour(number) for number in range(64)], dtype=float)
        assert np.abs(np.diff(colours, axis=0)).max(1).min() > 60
        assert len({tuple(colour) for colour in colours}) == 64

    @pytest.mark.parametrize("number", [1, 3])
    def test_one_or_more_variants_are_drawn_into_a_file(self, tmp_path, number):
        pytest.importorskip("matplotlib")
        maps = [planted(), planted(scores=None, centers=None, label="grid"), planted(label="wide" * 30)][:number]
        draw_token_maps(maps, tmp_path / "new" / "t.png", "a title")
        with Image.open(tmp_path / "new" / "t.png") as picture:
            assert picture.format == "PNG" and min(picture.size) > 500

    def test_nothing_to_draw_and_no_matplotlib_are_told(self, tmp_path, monkeypatch):
        with pytest.raises(ValueError, match="no tokens to draw"):
            draw_token_maps([], tmp_path / "t.png")
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ImportError, match=r"vistok\[draw\]"):
            draw_token_maps([planted()], tmp_path / "t.png")
        assert not list(tmp_path.iterdir())
