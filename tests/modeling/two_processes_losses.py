"""Run by test_fused_head_losses.py in each of two processes: gradients under DistributedDataParallel."""

import sys

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.modeling.head_inputs import IMAGE_WIDTH, VOCAB_SIZE, WIDTH
from tests.processes import leave_process_group
from vistok import language_modeling_loss, visual_modeling_loss


class TwoLosses(nn.Module):
    """A decoder of one layer whose head both losses use, on rows of which the first process has no image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.decoder = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.lm_head = nn.Linear(WIDTH, VOCAB_SIZE, bias=False, dtype=torch.float64)
        self.register_buffer("vm_head", torch.randn(VOCAB_SIZE, IMAGE_WIDTH, dtype=torch.float64))

    def forward(self, text, labels, image, features, num_labels, num_images):
        weight = self.lm_head.weight
        text_loss = language_modeling_loss(self.decoder(text), weight, labels, num_items=num_labels)
        states = self.decoder(image)
        return text_loss + visual_modeling_loss(states, weight, features, self.vm_head, num_items=num_images)


def rows(rank: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rank)
    num_text, num_image = (5, 0) if rank == 0 else (3, 7)
    options = {"generator": generator, "dtype": torch.float64}
    labels = torch.randint(VOCAB_SIZE, (num_text,), generator=generator)
    text, image = torch.randn(num_text, WIDTH, **options), torch.randn(num_image, WIDTH, **options)
    return text, labels, image, torch.randn(num_image, IMAGE_WIDTH, **options)


def main(folder: str) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model = DistributedDataParallel(TwoLosses())
    # DistributedDataParallel takes the mean over processes, hence the 2: of counts over both, the sum is wanted.
    (2 * model(*rows(rank), 8, 7)).backward()
    torch.save({name: p.grad for name, p in model.module.named_parameters()}, f"{folder}/{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_process_group()
