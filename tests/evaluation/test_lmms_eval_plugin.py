"""
The model class for lmms-eval, on stand-ins for the few names of lmms-eval that it uses, as version 0.7.3 has them.
test_lmms_eval_evaluator.py runs lmms-eval itself where it is installed.
"""

import dataclasses
import importlib.metadata
import random
import sys
import types
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_image
from vistok.evaluation import lmms_eval_plugin
from vistok.evaluation.image_text_models import ImageTextModel

NUM_IMAGES = 6
TEXTS = ("a?", "is there a red dog in it?", "how many are there?")
ANSWERS = ("red", "blue", "green")


class lmms:
    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.task_dict = {}
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *arguments: None)
        self.cleaned = False

    def clean(self):
        self.cleaned = True


@dataclasses.dataclass
class GenerationResult:
    text: object
    token_counts: object = None


@dataclasses.dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


@dataclasses.dataclass
class Instance:
    request_type: str
    args: tuple
    task_name: str = "colours"


@pytest.fixture
def lmms_eval(monkeypatch):
    """Modules of lmms-eval with these names."""
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, content in {
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.api.instance": {"GenerationResult": GenerationResult},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    lmms_eval_plugin._model_class.cache_clear()
    yield
    lmms_eval_plugin._model_class.cache_clear()


@pytest.fixture
def calls():
    """What was asked of the model: a list of prompts, images and settings for each batch."""
    return []


@pytest.fixture
def make_vistok(lmms_eval, monkeypatch, taught, processor, calls):
    """Makes lmms-eval's model of the taught GVT, with a record for each of three questions about six images."""

    def from_pretrained(path, **settings):
        return ImageTextModel(taught, processor, settings["batch_size"])

    def spy(method):
        original = getattr(ImageTextModel, method)

        def spied(self, prompts, images, *others, **settings):
            calls.append((list(prompts), [len(shown) for shown in images], settings))
            return original(self, prompts, images, *others, **settings)

        monkeypatch.setattr(ImageTextModel, method, spied)

    monkeypatch.setattr(ImageTextModel, "from_pretrained", from_pretrained)
    spy("generate")
    spy("log_likelihoods")

    def make(batch_size=4, **arguments):
        model = lmms_eval_plugin.Vistok(pretrained="taught", batch_size=batch_size, device="cpu", **arguments)
        records = [{"images": [tiny_image(number % NUM_IMAGES)]} for number in range(3 * NUM_IMAGES)]
        model.task_dict = {"colours": {"test": records}}
        return model

    return make


def images_of(record):
    return record["images"]


def generation(doc_id, text, **settings):
    settings = {"max_new_tokens": 4, "until": ["\n\n"], **settings}
    return Instance("generate_until", (text, settings, images_of, doc_id, "colours", "test"))


def likelihood(doc_id, text, continuation):
    return Instance("loglikelihood", (text, continuation, images_of, doc_id, "colours", "test"))


def planted():
    """Questions in no order, and what the taught model answers."""
    pairs = [(doc_id, TEXTS[doc_id // NUM_IMAGES]) for doc_id in range(3 * NUM_IMAGES)]
    random.Random(0).shuffle(pairs)
    return pairs, [ANSWERS[doc_id % len(ANSWERS)] for doc_id, _ in pairs]


class TestGeneration:
    def test_answers_come_in_the_order_of_the_requests(self, make_vistok):
        pairs, answers = planted()
        assert make_vistok().generate_until([generation(*pair) for pair in pairs]) == answers

    def test_requests_go_in_full_batches_the_longest_first(self, make_vistok, calls):
        pairs, _ = planted()
        make_vistok(batch_size=4).generate_until([generation(*pair) for pair in pairs])
        assert [len(prompts) for prompts, *_ in calls] == [4, 4, 4, 4, 2]
        lengths = [len(prompt) for prompts, *_ in calls for prompt in prompts]
        assert lengths == sorted(lengths, reverse=True)

    def test_requests_of_other_settings_go_in_other_batches(self, make_vistok, calls):
        long, short = {"max_new_tokens": 5, "num_beams": 2}, {"max_new_tokens": 1, "temperature": 0, "top_p": None}
        requests = [generation(index % NUM_IMAGES, TEXTS[0], **(short if index % 2 else long)) for index in range(8)]
        make_vistok(batch_size=16).generate_until(requests)
        expected = [{"max_new_tokens": 5, "num_beams": 2}, {"max_new_tokens": 1}]
        assert [settings for *_, settings in calls] == expected

    def test_a_task_without_a_limit_gets_that_of_lmms_eval(self, make_vistok, calls):
        request = generation(0, TEXTS[0])
        del request.args[1]["max_new_tokens"]
        make_vistok().generate_until([request])
        assert calls[0][2] == {"max_new_tokens": 1024}

    def test_an_answer_ends_at_the_first_stop_text(self, make_vistok):
        requests = [generation(0, TEXTS[0], until=["d", "e"]), generation(1, TEXTS[0], until="u")]
        assert make_vistok().generate_until(requests) == ["r", "bl"]

    def test_all_images_of_a_record_are_shown(self, make_vistok, calls):
        model = make_vistok()
        model.task_dict["colours"]["test"][1]["images"] = [tiny_image(1), tiny_image(2).convert("L"), None]
        request = Instance("generate_until", (TEXTS[0], {}, lambda record: None, 0, "colours", "test"))
        model.generate_until([generation(1, TEXTS[1]), request])
        assert [shown for _, shown, _ in calls] == [[2], [0]]

    def test_placeholders_in_a_text_are_left_out(self, make_vistok, calls):
        make_vistok().generate_until([generation(0, f"<image>\n{TEXTS[0]}")])
        assert calls[0][0] == [TEXTS[0]]

    def test_the_cache_hook_learns_every_answer(self, make_vistok):
        model, learnt = make_vistok(), []
        model.cache_hook.add_partial = lambda *arguments: learnt.append(arguments)
        request = generation(4, TEXTS[0])
        model.generate_until([request])
        assert learnt == [("generate_until", (TEXTS[0], request.args[1]), "blue")]

    def test_settings_of_a_task_are_left_as_they_are(self, make_vistok):
        request = generation(0, TEXTS[0], until=["x"], image_aspect_ratio="pad")
        before = dict(request.args[1])
        make_vistok().generate_until([request])
        assert request.args[1] == before

    def test_a_model_that_was_cleaned_is_loaded_again(self, make_vistok):
        model = make_vistok()
        model.clean()
        assert model.cleaned and model._model is None
        assert model.generate_until([generation(2, TEXTS[0])]) == ["green"]


class TestLikelihood:
    def expected(self, model, processor, doc_id, text, continuation):
        """Mean loss of the continuation's tokens and whether each is the most probable, one request at a time."""
        prompt = f"{processor.image_token}\nQuestion: {text} Answer:"
        inputs = processor(
            images=tiny_image(doc_id % NUM_IMAGES), text=f"{prompt} {continuation}", return_tensors="pt"
        )
        length = len(processor.tokenizer(f" {continuation}")["input_ids"])
        with torch.no_grad():
            logits = model(**inputs).logits[0, -length - 1 : -1].double()
        targets = inputs["input_ids"][0, -length:]
        return torch.nn.functional.cross_entropy(logits, targets).item(), logits.argmax(-1).equal(targets), length

    @pytest.mark.parametrize("kind", ["mean", "sum"])
    def test_losses_are_those_of_one_request_at_a_time(self, make_vistok, taught, processor, kind):
        pairs, _ = planted()
        asked = [(doc_id, text, answer) for doc_id, text in pairs for answer in ANSWERS]
        found = make_vistok(batch_size=7, likelihood=kind).loglikelihood(
            [likelihood(doc_id, text, f" {answer}") for doc_id, text, answer in asked]
        )
        for request, result in zip(asked, found):
            loss, is_greedy, length = self.expected(taught, processor, *request)
            assert result.text[0] == pytest.approx(loss * (length if kind == "sum" else 1), abs=1e-4)
            assert result.text[1] is is_greedy

    def test_the_right_choice_has_the_lowest_loss(self, make_vistok):
        pairs, answers = planted()
        found = make_vistok().loglikelihood(
            [likelihood(doc_id, text, f" {choice}") for doc_id, text in pairs for choice in ANSWERS]
        )
        losses = torch.tensor([result.text[0] for result in found]).view(-1, len(ANSWERS))
        assert [ANSWERS[choice] for choice in losses.argmin(1)] == answers
        assert sum(result.text[1] for result in found) == len(answers)  # and greedy decoding would give it

    def test_choices_of_one_question_go_in_one_batch(self, make_vistok, calls):
        choices = [" a", " a much longer answer than the other", " b"]
        requests = [likelihood(doc_id, f"q{doc_id}?", choice) for choice in choices for doc_id in range(4)]
        make_vistok(batch_size=6).loglikelihood(requests)
        assert sorted(sorted(set(prompts)) for prompts, *_ in calls) == [["q0?", "q1?"], ["q2?", "q3?"]]

    def test_a_continuation_may_come_from_the_record(self, make_vistok):
        model = make_vistok()
        model.task_dict["colours"]["test"][1]["answer"] = "blue"
        by_text, by_record = model.loglikelihood(
            [likelihood(1, TEXTS[0], "blue"), likelihood(1, TEXTS[0], lambda record: record["answer"])]
        )
        assert by_text.text == by_record.text and by_text.text[1] is True

    def test_a_text_alone_may_be_continued(self, make_vistok, calls):
        (result,) = make_vistok().loglikelihood([Instance("loglikelihood", ("", "red"))])
        assert calls == [([""], [0], {})]
        assert result.text[0] > 0

    def test_a_pair_is_not_kept_by_a_cache_that_would_make_it_a_text(self, lmms_eval):
        result = lmms_eval_plugin.likelihood_result(0.5, True)
        loss, is_greedy = result.text
        assert (loss, is_greedy) == (0.5, True)
        assert not result.text.strip()

    def test_an_lmms_eval_without_the_class_for_results_gets_the_pair(self, lmms_eval, monkeypatch):
        monkeypatch.delattr(sys.modules["lmms_eval.api.instance"], "GenerationResult")
        assert lmms_eval_plugin.likelihood_result(0.5, False) == (0.5, False)


class TestMistakes:
    @pytest.mark.parametrize(
        "settings", [{"do_sample": True}, {"temperature": 0.7}, {"do_sample": True, "top_p": 0.9}]
    )
    def test_a_task_that_samples_is_refused(self, make_vistok, settings):
        with pytest.raises(ValueError, match=r"'colours' samples.*--gen_kwargs do_sample=False,temperature=0"):
            make_vistok().generate_until([generation(0, TEXTS[0], **settings)])

    @pytest.mark.parametrize(
        "settings", [{"do_sample": False, "temperature": 0.7}, {"do_sample": True, "temperature": 0}]
    )
    def test_what_says_sampling_without_doing_it_is_greedy(self, make_vistok, settings):
        assert make_vistok().generate_until([generation(0, TEXTS[0], **settings)]) == ["red"]

    def test_a_video_is_refused(self, make_vistok):
        model = make_vistok()
        model.task_dict["colours"]["test"][3]["images"] = ["film.mp4"]
        with pytest.raises(TypeError, match="'colours' shows a str in record 3, expected images"):
            model.generate_until([generation(3, TEXTS[0])])

    def test_stop_texts_of_another_kind_are_refused(self, make_vistok):
        with pytest.raises(ValueError, match=r"'colours' has until=\[5\]"):
            make_vistok().generate_until([generation(0, TEXTS[0], until=[5])])

    def test_a_context_that_is_no_text_is_refused(self, make_vistok):
        with pytest.raises(TypeError, match="'colours' asks with a list, expected a text"):
            make_vistok().generate_until([generation(0, [{"role": "user"}])])

    def test_several_rounds_are_refused(self, make_vistok):
        with pytest.raises(NotImplementedError, match="colours asks in several rounds"):
            make_vistok().generate_until_multi_round([generation(0, TEXTS[0])])

    @pytest.mark.parametrize("batch_size", ["auto", 0, "-1", 2.5])
    def test_a_batch_size_that_is_no_number_is_refused(self, make_vistok, batch_size):
        with pytest.raises(ValueError, match="batch_size is"):
            make_vistok(batch_size=batch_size)

    def test_an_unknown_kind_of_likelihood_is_refused(self, make_vistok):
        with pytest.raises(ValueError, match="likelihood is 'max', expected mean or sum"):
            make_vistok(likelihood="max")


class TestPlugin:
    def test_lmms_eval_finds_the_class_through_the_entry_point(self, lmms_eval):
        root = Path(__file__).parents[2]
        line = 'vistok = "vistok.evaluation.lmms_eval_plugin:model_manifest"'
        declared = (root / "pyproject.toml").read_text(encoding="utf-8").partition('[project.entry-points."')[2]
        assert declared.splitlines()[:2] == ['lmms_eval.models"]', line]
        value = line.partition('"')[2].rstrip('"')
        manifest = importlib.metadata.EntryPoint("vistok", value, "lmms_eval.models").load()()
        module, _, name = manifest.simple_class_path.rpartition(".")
        assert manifest.model_id == "vistok"
        found = getattr(importlib.import_module(module), name)
        assert issubclass(found, lmms) and found.is_simple and found.__name__ == "Vistok"

    @pytest.mark.parametrize("ask", [lambda: lmms_eval_plugin.Vistok, lmms_eval_plugin.model_manifest])
    def test_without_lmms_eval_the_error_says_how_to_install_it(self, monkeypatch, ask):
        monkeypatch.setitem(sys.modules, "lmms_eval", None)
        for name in [name for name in sys.modules if name.startswith("lmms_eval.")]:
            monkeypatch.delitem(sys.modules, name)
        lmms_eval_plugin._model_class.cache_clear()
        with pytest.raises(ImportError, match=r'pip install --no-deps "lmms-eval>=0.7" && pip install evaluate'):
            ask()

    def test_an_unknown_name_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match="Nothing"):
            lmms_eval_plugin.Nothing  # noqa: B018

    def test_the_folder_of_tasks_is_printed(self, capsys):
        lmms_eval_plugin.main()
        assert (Path(capsys.readouterr().out.strip()) / "gvtbench_coco_oc.yaml").is_file()
