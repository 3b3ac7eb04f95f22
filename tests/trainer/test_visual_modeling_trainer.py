"""The four stages: which parameters get gradients, what losses are means over, what is logged, and resuming."""

# ruff: noqa: F811 (fixtures that are imported)

import copy
import math

import pytest
import torch
from datasets import Dataset

from tests.tiny import save_base_models, tiny_llama_config
from tests.trainer.tiny_training import largest_difference, losses, moved, parameters, question, questions
from tests.trainer.tiny_visual_modeling import (
    NUM_TOKENS,
    STAGES,
    compose_vtlmm,
    composed,  # noqa: F401 (fixtures)
    mixed,
    model,  # noqa: F401
    processor,  # noqa: F401
    trainer_for,  # noqa: F401
    trainer_of,
)
from vistok import VTLMMForCausalLM, VTLMMProcessor
from vistok.processing.image_collator import ImageCollator
from vistok.trainer.data_examples import FEATURES
from vistok.trainer.visual_modeling_trainer import count_items

TRAINED = {
    "alignment": ("model.adapter.",),
    "instruction": ("model.adapter.", "model.language_model.", "lm_head."),
    "visual_tokens": ("model.vm_head.",),
    "visual_modeling": ("model.language_model.", "lm_head."),
}


def gradients_of_step(trainer) -> dict[str, torch.Tensor]:
    """All gradients of the first step of a training, whatever it trains."""
    found = {}

    class Keep:
        def __call__(self, *args, **kwargs):
            for name, parameter in trainer.model.named_parameters():
                if parameter.grad is not None:
                    found.setdefault(name, parameter.grad.detach().clone())
            return step(*args, **kwargs)

    trainer.create_optimizer()
    step, trainer.optimizer.step = trainer.optimizer.step, Keep()
    trainer.train()
    return found


class TestGradients:
    @pytest.mark.parametrize("stage", STAGES)
    def test_a_stage_trains_its_parts_and_no_gradient_reaches_another(self, model, trainer_for, stage):
        before = parameters(model)
        trainer = trainer_for(model, stage, questions(4), max_steps=1)
        gradients = gradients_of_step(trainer)
        expected = {name for name in before if name.startswith(TRAINED[stage])}
        assert set(gradients) == expected and expected
        assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
        assert moved(trainer.model, before) == expected

    @pytest.mark.parametrize("rank", [None, 3])
    @pytest.mark.parametrize("stage", STAGES[1::2])
    def test_with_lora_the_decoders_own_weights_get_no_gradient(self, base_models, trainer_for, stage, rank):
        model = compose_vtlmm(base_models, vm_head_rank=rank)
        before = parameters(model)
        lora = {"r": 2, "init_lora_weights": False}
        trainer = trainer_for(model, stage, questions(4), trainable={"llm": "lora"}, lora=lora, max_steps=1)
        gradients = gradients_of_step(trainer)
        adapters = {name for name, _ in trainer.model.named_parameters() if ".lora_" in name}
        others = {name for name in before if name.startswith("model.adapter.")} if stage == "instruction" else set()
        assert set(gradients) == adapters | others and adapters
        assert all(name.startswith("model.language_model.") for name in adapters)

    @pytest.mark.parametrize("stage", STAGES)
    def test_tied_embeddings_are_trained_with_the_decoder_and_frozen_with_it(self, tmp_path, trainer_for, stage):
        torch.manual_seed(0)
        base = save_base_models(tmp_path, text_config=tiny_llama_config(vocab_size=340, tie_word_embeddings=True))
        model = compose_vtlmm(base)
        assert model.lm_head.weight is model.get_input_embeddings().weight
        before = parameters(model)
        trainer = trainer_for(model, stage, questions(4), max_steps=1)
        gradients = gradients_of_step(trainer)
        assert set(gradients) == {name for name in before if name.startswith(TRAINED[stage])}
        assert model.lm_head.weight is model.get_input_embeddings().weight

    def test_a_low_rank_head_is_trained_in_both_its_parts(self, base_models, trainer_for):
        model = compose_vtlmm(base_models, vm_head_rank=3)
        gradients = gradients_of_step(trainer_for(model, "visual_tokens", questions(4), max_steps=1))
        assert set(gradients) == {"model.vm_head.down.weight", "model.vm_head.up.weight"}
        assert all(gradient.abs().sum() > 0 for gradient in gradients.values())
        assert model.config.vm_head_trained is True

    def test_pseudo_image_features_change_what_is_read_and_train_the_decoder_alone(self, base_models, trainer_for):
        pseudo, plain = compose_vtlmm(base_models, pseudo_image_features=True), compose_vtlmm(base_models)
        found = {}
        for name, reading in (("pseudo", pseudo), ("plain", plain)):
            trainer = trainer_for(reading, "visual_modeling", questions(4), max_steps=1)
            found[name] = gradients_of_step(trainer), trainer.state.log_history[0]
        assert set(found["pseudo"][0]) == {n for n in parameters(plain) if n.startswith(TRAINED["visual_modeling"])}
        assert found["pseudo"][1]["loss_vm"] != pytest.approx(found["plain"][1]["loss_vm"], rel=1e-6)
        assert found["pseudo"][1]["visual_entropy"] == pytest.approx(found["plain"][1]["visual_entropy"])

    def test_a_control_with_no_weight_on_images_trains_like_language_modelling_alone(self, base_models, trainer_for):
        alone = trainer_for(
            compose_vtlmm(base_models), "instruction", questions(4), trainable={"adapter": "frozen"}, max_steps=1
        )
        control = trainer_for(
            compose_vtlmm(base_models), "visual_modeling", questions(4), visual_loss_weight=0.0, max_steps=1
        )
        assert largest_difference(gradients_of_step(alone), gradients_of_step(control)) < 1e-12
        assert "loss_vm" not in control.state.log_history[0] and "visual_entropy" in control.state.log_history[0]


class TestMeans:
    @pytest.mark.parametrize("stage", STAGES)
    def test_accumulated_batches_are_as_one(self, base_models, trainer_for, stage):
        found = []
        for batch_size, steps in ((8, 1), (2, 4), (1, 8)):
            trainer = trainer_for(
                compose_vtlmm(base_models), stage, mixed(16), per_device_train_batch_size=batch_size, max_steps=1,
                gradient_accumulation_steps=steps, visual_loss_weight=0.5 if stage == "visual_modeling" else 1.0,
            )  # fmt: skip
            found.append((gradients_of_step(trainer), trainer.state.log_history[0]))
        (one, logged), *others = found
        for gradients, entry in others:
            assert largest_difference(gradients, one) < 1e-10
            for name in {"loss_lm", "loss_vm"} & set(logged):
                assert entry[name] == pytest.approx(logged[name], rel=1e-9)
            assert entry["loss"] == pytest.approx(logged["loss"], rel=1e-6)  # which Trainer keeps in float32

    def test_the_means_are_those_of_a_direct_computation(self, model, processor, trainer_for):
        data = mixed(6)
        trainer = trainer_for(
            copy.deepcopy(model), "visual_modeling", data, per_device_train_batch_size=2, max_steps=1,
            gradient_accumulation_steps=3, train_sampling_strategy="sequential", visual_loss_weight=0.25,
        )  # fmt: skip
        trainer.train()
        batch = trainer._train_collator([data[index] for index in range(6)])
        with torch.no_grad():
            outputs = model.model(**{name: value for name, value in batch.items() if name != "labels"})
            log_q = model.lm_head(outputs.last_hidden_state).log_softmax(-1)
            log_p = model.model.vm_head(outputs.image_hidden_states.flatten(0, 1)).log_softmax(-1)
        labels = batch["labels"][:, 1:]
        supervised = labels != -100
        loss_lm = -log_q[:, :-1][supervised].gather(1, labels[supervised][:, None]).mean()
        image = batch["input_ids"] == model.config.image_token_id
        states = torch.zeros_like(image)
        states[:, :-1] = image[:, 1:]  # what stands before an image position predicts it
        first = image[:, 0]  # which nothing does for the first token of a row
        kept = torch.ones(len(log_p), dtype=torch.bool)
        kept[(image.flatten().cumsum(0) - 1).view(image.shape)[first, 0]] = False
        log_p, log_q = log_p[kept], log_q[states]
        loss_vm = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        entry = trainer.state.log_history[0]
        assert entry["loss_lm"] == pytest.approx(float(loss_lm), rel=1e-6)
        assert entry["loss_vm"] == pytest.approx(float(loss_vm), rel=1e-6)
        assert entry["loss"] == pytest.approx(float(loss_lm + 0.25 * loss_vm), rel=1e-6)

    def test_batches_without_images_are_trained_on_their_text(self, model, trainer_for):
        texts = Dataset.from_list([question(i) for i in range(4)], features=FEATURES)
        trainer = trainer_for(model, "visual_modeling", texts)
        trainer.train()
        assert [entry["loss_vm"] for entry in trainer.state.log_history if "loss" in entry] == [0.0, 0.0]
        assert all(math.isfinite(loss) and loss > 0 for loss in losses(trainer))
        assert "visual_entropy" not in trainer.state.log_history[0]

    def test_conversations_that_share_a_row_are_as_in_rows_of_their_own_but_for_their_image(
        self, base_models, trainer_for
    ):
        data, found = questions(8, per_image=4), []
        for options in ({"conversations_per_row": 1, "per_device_train_batch_size": 8},
                        {"conversations_per_row": 4, "per_device_train_batch_size": 2}):  # fmt: skip
            trainer = trainer_for(compose_vtlmm(base_models), "visual_modeling", data, max_steps=1, **options)
            trainer.train()
            found.append(trainer.state.log_history[0])
        # The image is predicted once for its four conversations, from the same tokens before it.
        assert found[1]["loss_lm"] == pytest.approx(found[0]["loss_lm"], rel=1e-9)
        assert found[1]["loss_vm"] == pytest.approx(found[0]["loss_vm"], rel=1e-9)

    @pytest.mark.parametrize("stage", STAGES[2:])
    def test_placeholders_that_images_leave_unused_are_no_positions(self, base_models, tmp_path, stage):
        setok = {"model_type": "setok_tokenizer", "method": "threshold", "score_threshold": 0.3, "num_neighbors": 2}
        setok |= {"max_tokens": 5, "merger_num_layers": 1}
        options = {"num_image_tokens": 5, "chat_template": "chatml"}
        processor = VTLMMProcessor.from_vision_text_pretrained(*base_models, **options)
        data = mixed(9 if stage == "visual_tokens" else 6)  # six rows: stage III leaves out those without an image
        for batch_size, steps in ((6, 1), (2, 3)):
            model = compose_vtlmm(base_models, adapter_config=setok)
            trainer = trainer_of(
                model, processor, tmp_path, stage, data, data, per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=steps, max_steps=1, learning_rate=0.0,
            )  # fmt: skip
            shown = torch.cat([trainer._token_mask(b) for b in trainer.get_eval_dataloader() if "pixel_values" in b])
            assert 0 < (~shown).sum() < shown.numel()
            trainer.train()
            # As an evaluation has it, which knows what was predicted.
            expected = trainer.evaluate()["eval_loss_vm"]
            assert trainer.state.log_history[0]["loss_vm"] == pytest.approx(expected, rel=1e-6)

    def test_what_is_counted(self, processor):
        row = processor.tokenizer("a dog?")["input_ids"]
        image = [processor.image_token_id] * NUM_TOKENS
        ids = torch.tensor([[*image, *row], [*row, *image]])
        labels = torch.full_like(ids, -100)
        labels[0, -2:], labels[1, 0] = 5, 5  # the first token of a row is predicted by nothing
        mask = torch.ones_like(ids)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        assert count_items(batch, processor.image_token_id) == [2, 2 * NUM_TOKENS - 1, ids.numel()]
        mask[0, : NUM_TOKENS - 2] = 0  # padding is neither predicted nor a token
        assert count_items(batch, processor.image_token_id) == [2, NUM_TOKENS + 1, ids.numel() - NUM_TOKENS + 2]
        used = torch.ones(2, NUM_TOKENS, dtype=torch.bool)
        used[1, -3:] = False  # nor is what an image leaves unused
        assert count_items(batch, processor.image_token_id, used) == [2, NUM_TOKENS - 2, ids.numel() - NUM_TOKENS - 1]


class TestImagesAlone:
    def test_each_distinct_image_is_shown_once_behind_the_token_that_begins_a_text(
        self, model, trainer_for, processor
    ):
        trainer = trainer_for(model, "visual_tokens", questions(6, per_image=2), questions(4, per_image=4))
        assert len(trainer.train_dataset) == 3 and len(trainer.eval_dataset) == 1
        assert isinstance(trainer._train_collator, ImageCollator)
        batch = next(iter(trainer.get_train_dataloader()))
        expected = [processor.tokenizer.bos_token_id, *[processor.image_token_id] * NUM_TOKENS]
        assert batch["input_ids"].tolist() == [expected] * 2 and "labels" not in batch

    @pytest.mark.parametrize(("missing", "first"), [((), "bos"), (("bos",), "eos"), (("bos", "eos"), None)])
    def test_without_a_token_that_begins_a_text_the_one_that_ends_it_or_none(self, processor, missing, first):
        processor = copy.deepcopy(processor)
        ids = {name: getattr(processor.tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
        for name in missing:
            setattr(processor.tokenizer, f"{name}_token", None)
        batch = ImageCollator(processor)([question(0, 0), question(1, 1)])
        begin = [] if first is None else [ids[first]]
        assert batch["input_ids"].tolist() == [[*begin, *[processor.image_token_id] * NUM_TOKENS]] * 2
        counted = count_items(batch, processor.image_token_id)[1]
        assert counted == 2 * (NUM_TOKENS if begin else NUM_TOKENS - 1)

    def test_examples_without_images_are_left_out_and_none_at_all_is_an_error(self, model, trainer_for):
        assert len(trainer_for(model, "visual_tokens", mixed(6)).train_dataset) == 4
        texts = Dataset.from_list([question(0)], features=FEATURES)
        with pytest.raises(ValueError, match="The data has no images"):
            trainer_for(model, "visual_tokens", texts)

    def test_cached_features_train_the_same_head(self, base_models, trainer_for, tmp_path):
        found = []
        for cached in (False, True):
            trainer = trainer_for(
                compose_vtlmm(base_models).float(), "visual_tokens", questions(4), cache_features=cached,
                feature_cache_dir=str(tmp_path / "features") if cached else None,
            )  # fmt: skip
            trainer.train()
            found.append(parameters(trainer.model))
        assert largest_difference(*found) < 1e-6


class TestResuming:
    @pytest.mark.parametrize(("stage", "rank"), [("visual_tokens", 3), ("visual_modeling", None)])
    def test_a_run_that_was_killed_ends_as_it_would_have(self, base_models, trainer_for, tmp_path, stage, rank):
        def run(folder, **options):
            trainer = trainer_for(
                compose_vtlmm(base_models, vm_head_rank=rank).float(), stage, mixed(12),
                output_dir=str(tmp_path / folder), save_strategy="steps", save_steps=3, logging_steps=2, max_steps=6,
                optim="adamw_torch", gradient_accumulation_steps=2, per_device_train_batch_size=1, learning_rate=1e-3,
                lr_scheduler_type="cosine",
            )  # fmt: skip
            trainer.train(**options)
            return trainer

        whole = run("whole")
        resumed = run("whole", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        assert largest_difference(parameters(whole.model), parameters(resumed.model)) == 0
        names = ("loss", "loss_lm", "loss_vm", "visual_perplexity", "visual_entropy")
        for before, after in zip(whole.state.log_history[:3], resumed.state.log_history[:3], strict=True):
            for name in set(names) & set(before):
                assert after[name] == pytest.approx(before[name], rel=1e-6), name


class TestChain:
    def test_each_stage_leaves_all_that_was_trained_so_far(self, base_models, processor, tmp_path):
        lora = {"trainable": {"llm": "lora"}, "lora": {"r": 2}, "learning_rate": 0.1}
        model, known = compose_vtlmm(base_models, vm_head_rank=3).float(), {}
        for stage in STAGES:
            options = lora if stage in STAGES[1::2] else {"learning_rate": 0.1}
            if stage == "visual_modeling":
                del options["lora"]  # its adapters are there already
            trainer = trainer_of(model, processor, tmp_path / stage, stage, questions(4), **options)
            before = parameters(trainer.model)
            trainer.train()
            assert moved(trainer.model, before)
            trainer.save_final(tmp_path / stage)
            known = parameters(trainer.model)
            model = VTLMMForCausalLM.from_pretrained(tmp_path / stage)
            assert largest_difference(parameters(model), known) == 0
        assert {path.name for path in (tmp_path / "visual_modeling").iterdir()} >= {"trained_weights.safetensors"}


class TestRefusals:
    def test_what_does_not_fit_the_stage_is_refused(self, model, trainer_for, base_models):
        with pytest.raises(
            ValueError, match=r"vm_head is to be trained .*loss of the stage instruction reaches all but"
        ):
            trainer_for(model, "instruction", questions(2), trainable={"vm_head": "full"})
        with pytest.raises(ValueError, match=r"llm is to be trained .*reaches only the VM head"):
            trainer_for(model, "visual_tokens", questions(2), trainable={"llm": "lora"})
        with pytest.raises(ValueError, match=r"unknown stage 'visual_token'.*Did you mean 'visual_tokens'"):
            trainer_for(model, "visual_token", questions(2))
        with pytest.raises(
            ValueError, match=r"conversations_per_row is 2, but the stage visual_tokens shows images alone"
        ):
            trainer_for(model, "visual_tokens", questions(2), conversations_per_row=2)
        with pytest.raises(ValueError, match=r"visual_loss_weight is 0\.5, but the stage alignment has no sum"):
            trainer_for(model, "alignment", questions(2), visual_loss_weight=0.5)
        with pytest.raises(ValueError, match=r"pseudo_image_features is on, but the stage visual_tokens"):
            trainer_for(compose_vtlmm(base_models, pseudo_image_features=True), "visual_tokens", questions(2))

    def test_a_model_without_a_head_for_visual_modelling_is_refused(self, base_models, trainer_for):
        from tests.tiny import RESAMPLER_SIZES
        from vistok import GVTForConditionalGeneration

        gvt = GVTForConditionalGeneration.from_vision_text_pretrained(*base_models, **RESAMPLER_SIZES)
        with pytest.raises(ValueError, match=r"GVTForConditionalGeneration has no VM head"):
            trainer_for(gvt, "alignment", questions(2))


class TestPlantedOptimum:
    """Nine patches, told apart by more directions than patches: a full head can say what is expected there."""

    def test_stage_three_drives_the_divergence_to_zero_and_stage_four_learns_what_it_left(
        self, base_models, trainer_for
    ):
        options = {"optim": "adamw_torch", "max_steps": 150, "logging_steps": 150, "max_grad_norm": 1.0}
        model = compose_vtlmm(base_models)
        trainer = trainer_for(model, "visual_tokens", questions(1), questions(1), learning_rate=0.1, **options)
        before = trainer.evaluate()["eval_loss_vm"]
        trainer.train()
        after = trainer.evaluate()
        assert before > 0.2 and after["eval_loss_vm"] < 0.01 * before
        # P' is Q then, and its perplexity is that of its own entropy.
        assert after["eval_visual_perplexity"] == pytest.approx(math.exp(after["eval_visual_entropy"]), rel=0.02)

        # Elsewhere, behind another text, the decoder expects something else: it learns what stage III settled on.
        trainer = trainer_for(
            model, "visual_modeling", questions(4, 4), questions(4, 4), learning_rate=1e-3, **options
        )
        before = trainer.evaluate()
        trainer.train()
        after = trainer.evaluate()
        assert after["eval_loss_lm"] < 0.5 * before["eval_loss_lm"]
        assert after["eval_visual_entropy"] == pytest.approx(before["eval_visual_entropy"])  # P' is fixed
        assert after["eval_loss_vm"] < 0.5 * before["eval_loss_vm"]
