"""
Do the words of visual tokens name what an image shows? For each held-out question that asks for a color, a shape or
an object, the answers of all such questions are ranked by how far their probability, on average over the patches of
the image, rises above its mean over all images. Beside it, the same words for another question's image, and chance.

    python studies/vtlmm/names.py [MODEL]
"""

import sys

import torch

from vistok import DataSource, VTLMMForCausalLM, VTLMMProcessor, load_data_source
from vistok.configuration.shipped import shipped_path
from vistok.processing.images import load_image

QUESTIONS = {
    "colors": DataSource(format="easy-vqa", split="test", where={"answer_type": "color"}),
    "shapes": DataSource(format="easy-vqa", split="test", where={"answer_type": "shape"}),
    "objects": DataSource(format="cutout-scenes", split="test", where={"kind": "naming"}, options={"num_scenes": 600}),
}
BATCH_SIZE = 16


@torch.no_grad()
def probabilities(model, processor, images: list, token_ids: list[int]) -> torch.Tensor:
    """P' of some tokens, on average over the patches of each image; `(num_images, num_tokens)`."""
    means = []
    for start in range(0, len(images), BATCH_SIZE):
        batch = [load_image(image) for image in images[start : start + BATCH_SIZE]]
        pixels = processor.image_processor(batch, return_tensors="pt")["pixel_values"].to(model.dtype)
        words = model.get_visual_tokens(pixels, top_k=1, return_distribution=True)
        means.append(words.distribution[..., token_ids].float().mean(1))
    return torch.cat(means)


def main(folder: str) -> None:
    model = VTLMMForCausalLM.from_pretrained(folder).eval()
    processor = VTLMMProcessor.from_pretrained(folder)
    print("| names of | questions | names | first is right, % | of another image | in five | chance: one, five |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for title, source in QUESTIONS.items():
        rows = load_data_source(source)
        answers = [messages[-1]["content"][-1]["text"].strip() for messages in rows["messages"]]
        first = {
            name: processor.tokenizer(f" {name}", add_special_tokens=False)["input_ids"][0] for name in set(answers)
        }
        names = sorted(name for name in first if list(first.values()).count(first[name]) == 1)
        kept = [number for number, answer in enumerate(answers) if answer in names]
        images = [rows[number]["images"][0] for number in kept]
        rise = probabilities(model, processor, images, [first[name] for name in names]).log()
        rise -= rise.mean(0)
        right = torch.tensor([names.index(answers[number]) for number in kept])
        others = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
        ranks, other_ranks = ((one > one.gather(1, right[:, None])).sum(1) for one in (rise, rise[others]))
        shares = [100 * share.float().mean() for share in (ranks == 0, other_ranks == 0, ranks < 5)]
        print(f"| {title} | {len(kept)} | {len(names)} | " + " | ".join(f"{share:.1f}" for share in shares)
              + f" | {100 / len(names):.1f}, {min(100, 500 / len(names)):.1f} |")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(shipped_path("checkpoints/vtlmm-demo")))
