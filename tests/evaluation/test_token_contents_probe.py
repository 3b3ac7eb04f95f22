"""The token probe learns what planted tokens hold, is kept, and scores what was written before it was drawn."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.planted_images import COLORS, NAMES, PixelProbe, image_run, planted_scenes, true_pictures
from tests.tiny import tiny_image_processor
from tests.tiny_setokim import tiny_setok_config
from vistok import SeTokForPreTraining
from vistok.evaluation import token_contents_probe
from vistok.evaluation.contents_probe_training import read_scenes
from vistok.evaluation.contents_scores import TOKEN_METRICS, contents_score
from vistok.evaluation.image_evaluation import evaluate_images
from vistok.evaluation.image_tasks import IMAGE_TASKS
from vistok.evaluation.image_writers import TokenizerWriter
from vistok.evaluation.report_table import report_markdown, save_report
from vistok.evaluation.task_questions import QuestionFiles
from vistok.evaluation.token_contents_probe import TokenProbeReader, token_probe_of_scenes, train_token_probe
from vistok.hub_cards.card_evaluation import normalised_report
from vistok.trainer.data_sources import load_data_source

SIZE = 16
VECTORS = 3 * torch.randn(1 + len(NAMES) + len(COLORS), SIZE, generator=torch.Generator().manual_seed(5))


def planted_tokens(contents, generator):
    """A token for each object, the vector of its class plus that of its colour, and two or three of the background."""
    number = 2 + int(torch.randint(2, (1,), generator=generator))
    tokens = [VECTORS[0]] * number
    for entry in contents:
        color = VECTORS[1 + len(NAMES) + list(COLORS).index(entry["color"])]
        tokens += [VECTORS[1 + NAMES.index(entry["name"])] + color] * entry["count"]
    stacked = torch.stack(tokens)[torch.randperm(len(tokens), generator=generator)]
    return stacked + 0.3 * torch.randn(stacked.shape, generator=generator)


def planted_contents(number, seed):
    rng, found = np.random.default_rng(seed), []
    for _ in range(number):
        names = [str(name) for name in rng.permutation(NAMES)[: 1 + rng.integers(3)]]
        paints = rng.choice(list(COLORS), len(names))
        counts = (1 + rng.integers(3, size=len(names))).tolist()
        entries = zip(names, paints.tolist(), counts)
        found.append([{"name": name, "color": color, "count": count} for name, color, count in entries])
    return found


def values_of(records):
    return {
        metric.name: metric.measured(metric.columns(records, records), range(len(records)))[0]
        for metric in TOKEN_METRICS
    }


@pytest.fixture(scope="module")
def reader():
    contents, generator = planted_contents(300, 0), torch.Generator().manual_seed(0)
    return train_token_probe([planted_tokens(one, generator) for one in contents], contents)


def test_a_probe_reads_classes_counts_and_colours_of_planted_tokens(reader):
    contents, generator = planted_contents(60, 1), torch.Generator().manual_seed(1)
    tokens = [planted_tokens(one, generator) for one in contents]
    values = values_of(reader.score(tokens, [{"id": 0, "contents": one} for one in contents]))
    assert values["token_class_f1"] > 0.9 and values["token_count_accuracy"] > 0.8, values
    assert values["token_color_accuracy"] > 0.9, values
    dealt = [*tokens[1:], tokens[0]]
    others = values_of(reader.score(dealt, [{"id": 0, "contents": one} for one in contents]))
    assert all(others[name] < values[name] - 0.15 for name in values), (values, others)
    assert reader.facts["num_held_out"] == 30 and reader.facts["held_out"]["class_f1"] > 0.9


def test_padding_changes_nothing_and_no_tokens_hold_nothing(reader):
    tokens = planted_tokens(planted_contents(1, 2)[0], torch.Generator().manual_seed(2))
    padded = torch.cat([tokens, torch.randn(3, SIZE)])[None]
    mask = torch.arange(len(tokens) + 3)[None] < len(tokens)
    (reading,) = reader.read([tokens])
    with torch.no_grad():
        densities, _ = reader.probe(padded, mask)
    torch.testing.assert_close(densities[0, : len(tokens)], reading.densities)
    assert densities[0, len(tokens) :].abs().sum() == 0 and reading.config.grid_size == (1, len(tokens))
    (empty,) = reader.read([[]])
    assert empty.shown == [] and empty.config.grid_size == (1, 0)
    assert contents_score(empty, [{"name": "cow", "color": "red", "count": 1}])["missing"] == 1


def test_tokens_and_captions_of_others_are_refused(reader):
    with pytest.raises(ValueError, match=r"Tokens have the shape \(1, 3\), expected \(number, 16\)"):
        reader.read([[[1.0, 2.0, 3.0]]])
    asked = [{"id": "c7", "contents": [{"name": "dog", "color": None, "count": 1}]}]
    with pytest.raises(ValueError, match="Caption c7: contents name 'dog', which the probe was not trained on"):
        reader.score([None], asked)
    with pytest.raises(ValueError, match="tokens of 1 images and contents of 2"):
        train_token_probe([torch.zeros(1, 2)], planted_contents(2, 0))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("token-probe-scenes")
    planted_scenes(folder, 24)
    return folder


class TestCache:
    @staticmethod
    def tokenizer(seed=0):
        torch.manual_seed(seed)
        return TokenizerWriter(SeTokForPreTraining(tiny_setok_config(draws=True)).eval(), tiny_image_processor())

    def test_it_is_trained_once_for_each_tokenizer_and_seed(self, scenes, tmp_path, monkeypatch):
        first = token_probe_of_scenes(scenes, self.tokenizer(), cache_folder=tmp_path)
        assert (first.facts["num_scenes"], first.facts["num_held_out"]) == (22, 2)
        trained = []

        def train(*arguments):
            trained.append(arguments)
            return train_token_probe(*arguments)

        monkeypatch.setattr(token_contents_probe, "train_token_probe", train)
        again = token_probe_of_scenes(scenes, self.tokenizer(), cache_folder=tmp_path)
        assert not trained and again.facts == first.facts and again.config == first.config
        tokens = torch.randn(4, first.config.token_size)
        torch.testing.assert_close(again.read([tokens])[0].densities, first.read([tokens])[0].densities)
        token_probe_of_scenes(scenes, self.tokenizer(1), cache_folder=tmp_path)
        token_probe_of_scenes(scenes, self.tokenizer(), seed=1, cache_folder=tmp_path)
        token_probe_of_scenes(scenes, self.tokenizer(), num_scenes=20, cache_folder=tmp_path)
        assert len(trained) == 3 and len(list(tmp_path.iterdir())) == 4

    def test_it_is_trained_on_the_tokens_of_the_scenes_alone(self, scenes, tmp_path, monkeypatch):
        given = {}
        monkeypatch.setattr(
            token_contents_probe, "train_token_probe",
            lambda tokens, contents, seed: given.update(tokens=tokens, contents=contents) or TestCache.tiny_reader(),
        )  # fmt: skip
        tokenizer = self.tokenizer()
        token_probe_of_scenes(scenes, tokenizer, cache_folder=tmp_path)
        found = read_scenes(scenes)
        encoded = tokenizer.encode([scene.image.image() for scene in found])
        assert given["contents"] == [scene.contents for scene in found]
        for own, tokens, mask in zip(given["tokens"], encoded.tokens, encoded.mask.bool()):
            torch.testing.assert_close(own, tokens[mask])

    @staticmethod
    def tiny_reader():
        contents = planted_contents(20, 0)
        return train_token_probe([torch.ones(2, 4)] * 20, contents, epochs=1)

    def test_a_damaged_probe_is_told(self, scenes, tmp_path):
        token_probe_of_scenes(scenes, self.tokenizer(), cache_folder=tmp_path)
        (place,) = tmp_path.iterdir()
        content = json.loads((place / "probe.json").read_text())
        (place / "probe.json").write_text(json.dumps({"config": content["config"]}))
        with pytest.raises(ValueError, match=r"is damaged .* remove the folder"):
            token_probe_of_scenes(scenes, self.tokenizer(), cache_folder=tmp_path)
        (place / "probe.json").write_text(json.dumps(content))
        (place / "probe.safetensors").write_bytes(b"half")
        with pytest.raises(ValueError, match=r"is damaged .* remove the folder"):
            token_probe_of_scenes(scenes, self.tokenizer(), cache_folder=tmp_path)
        (place / "probe.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match="no probe in"):
            TokenProbeReader.load(place)

    def test_few_scenes_are_told(self, scenes, tmp_path):
        with pytest.raises(ValueError, match="holds 7 scenes, expected at least 20"):
            token_probe_of_scenes(scenes, self.tokenizer(), num_scenes=7, cache_folder=tmp_path)


class TestReport:
    """A generator that writes the right tokens, and a detokenizer that draws nothing of them."""

    @staticmethod
    def examples(scenes):
        files = QuestionFiles(scenes, load_source=load_data_source)
        return IMAGE_TASKS["generation"].load("generation", files)[0].test[:12]

    def evaluated(self, scenes, folder, reader, keeps=True):
        generator = torch.Generator().manual_seed(3)

        def writer(condition, examples):
            if condition == "targets":
                return [(image, {}) for image, _ in true_pictures(examples)]
            found = []
            for example in examples:
                tokens = planted_tokens(example["contents"], generator)
                kept = {"tokens": tokens.tolist()} if keeps else {}
                found.append((Image.new("RGB", (32, 32), (128, 128, 128)), {"num_tokens": len(tokens), **kept}))
            return found

        run = image_run(folder, probe=PixelProbe(), token_probe=reader)
        return evaluate_images(IMAGE_TASKS["generation"], writer, self.examples(scenes), run)[0]

    def test_what_is_written_right_and_drawn_badly_is_right_by_tokens(self, scenes, tmp_path, reader):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            results = self.evaluated(scenes, tmp_path, reader)
        assert results["class_f1"] == 0 and results["ceilings"]["targets"]["class_f1"] == 1
        own = results["metrics"]["token_class_f1"]
        assert own["value"] > 0.9 and results["ceilings"]["true_tokens"]["metrics"]["token_class_f1"]["value"] > 0.9
        dealt = results["floors"]["shuffled_captions"]["metrics"]["token_class_f1"]["value"]
        assert dealt < own["value"] - 0.2
        text = report_markdown(results)
        for label in ("classes by tokens, F1, %", "count right by tokens, %", "colour right by tokens, %"):
            (row,) = [line for line in text.splitlines() if line.startswith(f"| {label} |")]
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert len(cells) == 5 and cells[-1] == "–" and "–" not in cells[2:4], "the last are the true images"
        assert "The token probe reads the tokens themselves (16 numbers each)" in text
        assert "of 270 scenes. On scenes of these that were held out it reaches, in percent: classes, F1 " in text
        assert results["token_probe"]["num_scenes"] == 270

    def test_the_report_and_the_card_take_what_has_no_value(self, scenes, tmp_path, reader):
        results = self.evaluated(scenes, tmp_path / "run", reader)
        files = save_report(results, tmp_path / "out")
        read = json.loads(files["json"].read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
        assert read["ceilings"]["targets"]["metrics"]["token_class_f1"] == {"value": None, "interval": None}
        assert normalised_report(read)["metrics"]["token_class_f1"]["value"] > 90

    def test_predictions_without_tokens_have_no_score_and_a_note(self, scenes, tmp_path, reader):
        results = self.evaluated(scenes, tmp_path, reader, keeps=False)
        assert results["metrics"]["token_class_f1"] == {"value": None, "interval": None}
        assert any("Of 12 images the predictions file holds no tokens" in note for note in results["notes"])

    def test_without_a_token_probe_there_are_no_such_metrics(self, scenes, tmp_path):
        results = self.evaluated(scenes, tmp_path, None)
        assert set(results["metrics"]) == {"count_accuracy", "color_accuracy", "exact"}
        assert "token_probe" not in results and "token probe" not in report_markdown(results)
