"""
Clustering patches by density peaks and merging clusters into tokens, against loops and other formulations.

    python -m benchmarks.density_peaks

Patches are those of images with as many objects as clusters (32), in features of width 1024; 16 images.

- threshold: `cluster_patches`, which is deterministic, against a loop over images with the same steps, and against our
  own transcription of the batched formulation of Chat-UniVi (PKU-YuanGroup/Chat-UniVi, ChatUniVi/model/cluster.py: the
  differences are taken by torch.cdist, densities get random noise, and masks are multiplied as numbers).
- iterative: forward and backward of the soft masks and the weighted means, against a loop over images that takes each
  distance by a matrix-vector product, and against the same loop as one would first write it: it indexes the batch and
  subtracts the seed from all patches.
- merger: forward and backward of two layers within clusters and two between tokens (4 images, width 512, 24 clusters),
  against a loop over clusters with the same weights, and against the linear layers alone, which each patch and each
  token has to pass whatever attends to what; and against these with their norms, activations and residuals.

Time is CPU time on one thread, in rounds that take turns; memory the peak above inputs, weights and gradients. Ratios
are the other over ours: above 1 ours is better. Ours over the linear layers is the last column.
"""

import statistics
from collections.abc import Callable

import torch
from torch import nn

from benchmarks._measure import interleaved_seconds, median_ratio, parse_arguments, peak_bytes, report
from vistok import SeTokTokenizerConfig, cluster_patches
from vistok.modeling.cluster_merger import ClusterMerger
from vistok.modeling.packed_segments import SegmentLayer
from vistok.modeling.patch_clusters import PatchClusters

NUM_NEIGHBORS = 5
NUM_OBJECTS = 32
SCORE_THRESHOLD = 0.7
KERNEL_SCALE = 0.7
STOP_THRESHOLD = 0.05
MAX_TOKENS = 64


def patch_features(batch_size: int, num_patches: int, hidden_size: int) -> torch.Tensor:
    """Patches of objects: a feature of each object and half as much of their own."""
    torch.manual_seed(0)
    objects = torch.randn(batch_size, NUM_OBJECTS, hidden_size)
    which = torch.randint(NUM_OBJECTS, (batch_size, num_patches))
    chosen = objects.gather(1, which.unsqueeze(-1).expand(-1, -1, hidden_size))
    return 0.8 * chosen + 0.5 * torch.randn(batch_size, num_patches, hidden_size)


def scores_of_image(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of the patches of one image and its squared distances, `(num_patches, num_patches)`."""
    norms = image.square().sum(-1)
    squared = (norms[:, None] + norms - 2 * image @ image.t()).clamp_(min=0).div_(image.shape[-1])
    densities = (-squared.topk(NUM_NEIGHBORS, largest=False).values.mean(-1)).exp()
    rank = densities.argsort(descending=True, stable=True).argsort()
    to_denser = squared.masked_fill(rank[:, None] <= rank, torch.inf).amin(-1)
    densest = rank.argmin()
    to_denser[densest] = squared[densest].max()
    return densities * to_denser.sqrt(), squared


@torch.no_grad()
def threshold_loop(features: torch.Tensor) -> list[torch.Tensor]:
    """The threshold method image by image: cluster masks."""
    masks = []
    for image in features:
        scores, squared = scores_of_image(image)
        num_centers = int((scores > SCORE_THRESHOLD).sum().clamp(1, MAX_TOKENS))
        centers = scores.argsort(descending=True, stable=True)[:num_centers].sort().values
        labels = squared[centers].argmin(0)
        labels[centers] = torch.arange(num_centers)
        masks.append(nn.functional.one_hot(labels, num_centers).t().float())
    return masks


@torch.no_grad()
def chat_univi(features: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """Labels of a fixed number of clusters, in the batched formulation of Chat-UniVi: our own transcription."""
    distances = torch.cdist(features, features) / features.shape[-1] ** 0.5
    nearest = torch.topk(distances, k=NUM_NEIGHBORS, dim=-1, largest=False).values
    densities = (-(nearest**2).mean(-1)).exp()
    densities = densities + torch.rand_like(densities) * 1e-6
    is_denser = (densities[:, None, :] > densities[:, :, None]).to(features.dtype)
    largest = distances.flatten(1).max(-1).values[:, None, None]
    to_denser = (distances * is_denser + largest * (1 - is_denser)).min(-1).values
    centers = torch.topk(to_denser * densities, k=num_clusters, dim=-1).indices
    rows = distances.gather(1, centers.unsqueeze(-1).expand(-1, -1, distances.shape[-1]))
    labels = rows.argmin(1)
    slots = torch.arange(num_clusters).expand_as(centers)
    return labels.scatter(1, centers, slots)


def iterative_masks(image: torch.Tensor, squared_distances_to: Callable[[int], torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        scores = scores_of_image(image.detach())[0]
    scope, masks = torch.ones_like(scores), []
    while len(masks) < MAX_TOKENS - 1 and float(scope.detach().mean()) >= STOP_THRESHOLD:
        seed = int((scores * scope.detach()).argmax())
        alpha = torch.exp(-squared_distances_to(seed) / image.shape[-1] / KERNEL_SCALE**2)
        masks.append(scope * alpha)
        scope = scope * (1 - alpha)
    return torch.stack([*masks, scope])


def iterative_loop(features: torch.Tensor) -> list[torch.Tensor]:
    """Algorithm 1 image by image, a distance by a matrix-vector product."""
    tokens = []
    for image in features.unbind():
        norms = image.square().sum(-1)
        masks = iterative_masks(image, lambda seed, x=image, n=norms: (n + n[seed] - 2 * x @ x[seed]).clamp(min=0))
        tokens.append(masks @ image / masks.sum(-1, keepdim=True))
    return tokens


def iterative_naive(features: torch.Tensor) -> list[torch.Tensor]:
    """Algorithm 1 as it is first written down: with the batch indexed, and differences, at every step."""
    tokens = []
    for index in range(len(features)):
        masks = iterative_masks(
            features[index], lambda seed, i=index: (features[i, seed] - features[i]).square().sum(-1)
        )
        tokens.append(masks @ features[index] / masks.sum(-1, keepdim=True))
    return tokens


def iterative_ours(features: torch.Tensor) -> list[torch.Tensor]:
    masks = cluster_patches(
        features,
        method="iterative",
        assignment="soft",
        num_neighbors=NUM_NEIGHBORS,
        stop_threshold=STOP_THRESHOLD,
        kernel_scale=KERNEL_SCALE,
        max_tokens=MAX_TOKENS,
    ).cluster_masks
    mass = masks.sum(-1, keepdim=True)
    return [masks @ features / torch.where(mass > 0, mass, 1)]


class Backward:
    """Forward and backward of what makes tokens of features."""

    def __init__(self, function: Callable[[torch.Tensor], list[torch.Tensor]], features: torch.Tensor):
        self.function, self.features = function, features.clone().requires_grad_()
        self.features.grad = torch.zeros_like(features)

    def __call__(self) -> None:
        sum(tokens.square().sum() for tokens in self.function(self.features)).backward()


class MergerSteps:
    """Forward and backward of one merger in several formulations, with the weights of one."""

    def __init__(self, batch_size: int, num_patches: int, hidden_size: int, num_clusters: int):
        torch.manual_seed(0)
        config = SeTokTokenizerConfig(
            patch_hidden_size=hidden_size, position_embedding=False, attn_implementation="sdpa"
        )
        self.merger = ClusterMerger(config)
        self.features = torch.randn(batch_size, num_patches, hidden_size, requires_grad=True)
        assignment = torch.randint(num_clusters, (batch_size, num_patches))
        assignment[:, :num_clusters] = torch.arange(num_clusters)
        masks = nn.functional.one_hot(assignment, num_clusters).transpose(1, 2).float()
        mask = torch.ones(batch_size, num_clusters, dtype=torch.bool)
        self.clusters = PatchClusters(cluster_masks=masks, assignment=assignment, mask=mask)
        self.direction = torch.randn(batch_size, num_clusters, hidden_size)

    def ours(self) -> None:
        self._backward(self.merger(self.features, self.clusters, (1, self.features.shape[1]))[0])

    def loop(self) -> None:
        tokens = []
        for image, assignment in zip(self.features.unbind(), self.clusters.assignment, strict=True):
            means = []
            for cluster in range(self.clusters.mask.shape[1]):
                members = image[assignment == cluster]
                for layer in self.merger.within_layers:
                    members = layer(members, [(1, len(members))])
                means.append(members.mean(0))
            between = torch.stack(means)
            for layer in self.merger.between_layers:
                between = layer(between, [(1, len(between))])
            tokens.append(self.merger.output_projection(self.merger.norm(between)))
        self._backward(torch.stack(tokens))

    def floor(self) -> None:
        self._per_token(self._linears)

    def per_token(self) -> None:
        self._per_token(self._without_attention)

    def _per_token(self, pass_layer) -> None:
        states = self.features.flatten(0, 1)
        for layer in self.merger.within_layers:
            states = pass_layer(layer, states)
        states = states[: self.clusters.mask.numel()]
        for layer in self.merger.between_layers:
            states = pass_layer(layer, states)
        self._backward(self.merger.output_projection(states).view_as(self.direction))

    @staticmethod
    def _linears(layer: SegmentLayer, states: torch.Tensor) -> torch.Tensor:
        attention, feed_forward = layer.attention, layer.feed_forward
        mixed = attention.q_proj(states) + attention.k_proj(states) + attention.v_proj(states)
        return feed_forward.down_proj(feed_forward.up_proj(attention.o_proj(mixed)))

    @staticmethod
    def _without_attention(layer: SegmentLayer, states: torch.Tensor) -> torch.Tensor:
        attention, normed = layer.attention, layer.attention_norm(states)
        mixed = attention.q_proj(normed) + attention.k_proj(normed) + attention.v_proj(normed)
        states = states + attention.o_proj(mixed)
        return states + layer.feed_forward(layer.feed_forward_norm(states))

    def _backward(self, tokens: torch.Tensor) -> None:
        (tokens * self.direction).sum().backward()


def compare(work: str, shape: str, functions: dict[str, Callable[[], object]], rounds: int, floor: str = "") -> list:
    for function in functions.values():
        function()  # so that gradients are there
    seconds = interleaved_seconds(functions, rounds)
    memory = {name: peak_bytes(function) / 2**20 for name, function in functions.items()}
    return [
        {
            "work": work,
            "shape": shape,
            "formulation": name,
            "ms": 1e3 * statistics.median(seconds[name]),
            "time ratio": median_ratio(seconds[name], seconds["ours"]),
            "MiB": memory[name],
            "memory ratio": memory[name] / memory["ours"],
            "ours over floor": median_ratio(seconds["ours"], seconds[floor]) if floor else "",
        }
        for name in functions
    ]


def threshold_functions(features: torch.Tensor) -> dict[str, Callable[[], object]]:
    def ours() -> PatchClusters:
        with torch.no_grad():
            return cluster_patches(
                features,
                method="threshold",
                num_neighbors=NUM_NEIGHBORS,
                score_threshold=SCORE_THRESHOLD,
                max_tokens=MAX_TOKENS,
            )

    num_clusters = ours().mask.shape[1]
    return {
        "ours": ours,
        "loop over images": lambda: threshold_loop(features),
        "Chat-UniVi's, transcribed": lambda: chat_univi(features, num_clusters),
    }


def main() -> None:
    options = parse_arguments(__doc__, rounds=9)
    rounds = 1 if options.quick else options.rounds
    rows = []
    for num_patches in (40, 48) if options.quick else (256, 576):
        batch_size, hidden_size = (2, 32) if options.quick else (16, 1024)
        features = patch_features(batch_size, num_patches, hidden_size)
        shape = f"B{batch_size} N{num_patches} D{hidden_size}"
        rows += compare("threshold", shape, threshold_functions(features), rounds)
        if num_patches == 576:
            continue
        ours, work = Backward(iterative_ours, features), "iterative, forward and backward"
        loop, naive = Backward(iterative_loop, features), Backward(iterative_naive, features)
        rows += compare(work, shape, {"ours": ours, "loop over images": loop}, rounds)
        # In fewer rounds, because it takes by far the longest.
        rows += compare(work, shape, {"ours": ours, "naive loop": naive}, min(rounds, 3))[1:]
    for num_patches in (40,) if options.quick else (256, 576):
        batch_size, hidden_size = (2, 32) if options.quick else (4, 512)
        merger = MergerSteps(batch_size, num_patches, hidden_size, num_clusters=24)
        functions = {
            "ours": merger.ours,
            "loop over clusters": merger.loop,
            "linear layers alone": merger.floor,
            "without attention": merger.per_token,
        }
        shape = f"B{batch_size} N{num_patches} D{hidden_size}"
        rows += compare("merger, forward and backward", shape, functions, rounds, floor="linear layers alone")
    report(rows, options.csv)


if __name__ == "__main__":
    main()
