"""Train one stage of a VT-LMM with transformers' Trainer. Copy this file and change it.

    vistok fetch && vistok fetch easy-vqa
    python examples/finetune_vtlmm.py --stage instruction --data easy-vqa --output_dir runs/vtlmm-2
    python examples/finetune_vtlmm.py --stage visual_tokens --model runs/vtlmm-2 --output_dir runs/vtlmm-3
    python examples/finetune_vtlmm.py --stage visual_modeling --model runs/vtlmm-3 --output_dir runs/vtlmm-4

Your own data: a LLaVA-format file and its image folder (--data llava --path conversations.jsonl --images photos).
"""

import argparse

import torch
from transformers import AutoProcessor, Trainer, TrainingArguments, set_seed

from vistok import (
    ImageCollator,
    VisualLanguageCollator,
    VTLMMForCausalLM,
    VTLMMProcessor,
    load_data_source,
    load_image,
    save_trained_weights,
)

# What each stage trains (VT-LMM, Section 3.1): prefixes of the names of weights, and the loss on image positions.
STAGES = {
    "alignment": (("model.adapter",), None),
    "instruction": (("model.adapter", "model.language_model", "lm_head"), None),
    "visual_tokens": (("model.vm_head",), "visual_tokens"),
    "visual_modeling": (("model.language_model", "lm_head"), "visual_modeling"),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--stage", default="instruction", choices=STAGES)
parser.add_argument("--model", help="folder that the stage before left; by default a new model of these two:")
parser.add_argument("--vision", default="vistok:dinov2-small", help="name, folder or Hub id of the vision tower")
parser.add_argument("--text", default="vistok:smollm2-135m", help="name, folder or Hub id of the language model")
parser.add_argument("--data", default="easy-vqa", help="format of the data")
parser.add_argument("--path", help="file or folder of the data")
parser.add_argument("--images", help="folder of the images")
parser.add_argument("--max_samples", type=int, help="use only so many examples")
parser.add_argument("--max_steps", type=int, default=200)
parser.add_argument("--batch_size", type=int, default=8)
parser.add_argument("--learning_rate", type=float, default=1e-4)
parser.add_argument("--image_size", type=int, default=112, help="side of the images in pixels")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output_dir", default="runs/vtlmm")


class StageTrainer(Trainer):
    """A Trainer that asks the model for the loss of a stage. (VisualModelingTrainer does more: see its docstring.)"""

    visual_loss: str | None = None
    loss_is_scaled_for_ga = False  # each loss is the mean of its batch; Trainer averages over the batches of a step

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, visual_loss=self.visual_loss, skip_logits=True)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def main() -> None:
    options = parser.parse_args()
    set_seed(options.seed)
    trained, StageTrainer.visual_loss = STAGES[options.stage]

    # 1. A new model, or that of the stage before; frozen but for what this stage trains.
    if options.model is None:
        parts = (options.vision, options.text)
        layer = -3 if options.vision == "vistok:dinov2-small" else -2  # its last layers are tuned for saliency
        model = VTLMMForCausalLM.from_vision_text_pretrained(
            *parts, image_size=options.image_size, vision_feature_layer=layer
        )
        processor = VTLMMProcessor.from_vision_text_pretrained(
            *parts, image_size=options.image_size, chat_template="chatml"
        )
    else:
        model, processor = (
            VTLMMForCausalLM.from_pretrained(options.model),
            AutoProcessor.from_pretrained(options.model),
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small updates would be lost in bfloat16

    # 2. Examples with images and messages; any data set of such dictionaries will do.
    source = {"format": options.data, "path": options.path, "images": options.images}
    dataset = load_data_source({**source, "max_samples": options.max_samples})
    images_alone = options.stage == "visual_tokens"
    collator = ImageCollator(processor) if images_alone else VisualLanguageCollator(processor)

    # 3. Train.
    arguments = TrainingArguments(
        output_dir=options.output_dir,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        logging_steps=5,
        save_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=options.seed,
        report_to="none",
    )
    StageTrainer(model, arguments, train_dataset=dataset, data_collator=collator, processing_class=processor).train()

    # 4. Save what was trained so far, and read an image as words.
    save_trained_weights(model, options.output_dir)
    processor.save_pretrained(options.output_dir)
    image = load_image(next(image for example in dataset for image in example["images"]))
    pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"].to(model.device)
    words = model.eval().get_visual_tokens(pixels, top_k=1).token_ids[0, :, 0]
    print(*(word.strip() for word in processor.tokenizer.batch_decode(words[:, None])), sep=" | ")


if __name__ == "__main__":
    main()
