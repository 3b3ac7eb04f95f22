"""Fine-tune a GVT on images and conversations with transformers' Trainer. Copy this file and change it.

    vistok fetch && vistok fetch easy-vqa
    python examples/finetune_gvt.py --data easy-vqa --max_steps 100 --output_dir runs/gvt-finetuned

Your own data: a LLaVA-format file and its image folder.

    python examples/finetune_gvt.py --data llava --path conversations.jsonl --images photos --output_dir runs/mine
"""

import argparse

import torch
from transformers import Trainer, TrainingArguments, pipeline, set_seed

from vistok import (
    GVTForConditionalGeneration,
    GVTProcessor,
    VisualLanguageCollator,
    load_data_source,
    load_image,
    save_trained_weights,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--vision", default="vistok:dinov2-small", help="name, folder or Hub id of the vision tower")
parser.add_argument("--text", default="vistok:smollm2-135m", help="name, folder or Hub id of the language model")
parser.add_argument("--data", default="easy-vqa", help="format of the data")
parser.add_argument("--path", help="file or folder of the data")
parser.add_argument("--images", help="folder of the images")
parser.add_argument("--max_samples", type=int, help="use only so many examples")
parser.add_argument("--max_steps", type=int, default=200)
parser.add_argument("--batch_size", type=int, default=16)
parser.add_argument("--learning_rate", type=float, default=1e-3)
parser.add_argument("--image_size", type=int, default=112, help="side of the images in pixels")
parser.add_argument("--num_latents", type=int, default=16, help="visual tokens per image")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output_dir", default="runs/gvt-finetuned")


def main() -> None:
    options = parser.parse_args()
    set_seed(options.seed)

    # 1. A frozen tower, a new resampler, a frozen language model, and the processor that belongs to them.
    model = GVTForConditionalGeneration.from_vision_text_pretrained(
        options.vision,
        options.text,
        vision_feature_layer=-3,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=2,
        num_attention_heads=6,
        head_dim=64,
        num_latents=options.num_latents,
    )
    processor = GVTProcessor.from_vision_text_pretrained(
        options.vision, options.text, image_size=options.image_size, num_image_tokens=options.num_latents
    )
    model.requires_grad_(False)
    for part in (model.model.resampler, model.model.projector):
        part.float().requires_grad_(True)  # small updates would be lost in bfloat16

    # 2. Examples with images and messages; any data set of such dictionaries will do.
    source = {"format": options.data, "path": options.path, "images": options.images}
    dataset = load_data_source({**source, "max_samples": options.max_samples})

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
    collator = VisualLanguageCollator(processor)
    Trainer(model, arguments, train_dataset=dataset, data_collator=collator, processing_class=processor).train()

    # 4. Save what was trained, and ask.
    save_trained_weights(model, options.output_dir)
    processor.save_pretrained(options.output_dir)
    ask = pipeline("image-text-to-text", model=options.output_dir)
    images = [{"type": "image", "image": load_image(image)} for image in dataset[0]["images"]]
    words = [part for part in dataset[0]["messages"][0]["content"] if part["type"] == "text"]
    answer = ask(text=[{"role": "user", "content": images + words}], max_new_tokens=10, return_full_text=False)
    print(*(part["text"] for part in words), "→", answer[0]["generated_text"].strip())


if __name__ == "__main__":
    main()
