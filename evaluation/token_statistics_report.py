"""Language statistics of visual tokens as JSON, as a page of Markdown, and as a figure."""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration.optional import require
from ..modeling.atomic_folder import write_bytes_atomically, write_text_atomically
from .token_statistics import FREQUENT
from .word_map_picture import Fonts
from .zipf import zipf_probabilities

FILE_NAME = "token_statistics"
COUNTED = {"most_probable": "most probable words", "expected": "expected counts, sum of P'"}
RANKS = {"frequent_ranks": "frequent ranks", "all_ranks": "all ranks"}
COLOURS = {"most_probable": "#1f6fb4", "expected": "#d9772b"}
ENTROPIES = {
    "most_probable_words": "of the most probable words",
    "pooled": "of the pooled distribution, the mean of P'",
    "mean_of_patches": "of P', mean over patches",
    "mutual_information": "mutual information of patch and word: pooled less mean",
    "of_uniform": "of a uniform distribution over the vocabulary",
}
SHOWN_WORDS = 25
NAMED_WORDS = 3
GREY = "#606060"


def write_token_statistics(results: Mapping[str, Any], folder: str | os.PathLike) -> list[Path]:
    """
    Writes language statistics as `token_statistics.json`, `.md` and `.png`.

    Args:
        results (`dict`): from [`measure_token_statistics`] or [`TokenStatistics.results`]; may have `model`, `images`
            and `command`, which are written too.
        folder (`str`): made if need be.

    Returns:
        `list[Path]`: the files.

    Raises:
        ImportError: if matplotlib is not installed; names the extra, and nothing is written.
    """
    picture = draw_token_statistics(results)
    files = [Path(folder) / f"{FILE_NAME}{ending}" for ending in (".json", ".md", ".png")]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(files[0], json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    write_text_atomically(files[1], token_statistics_markdown(results))
    write_bytes_atomically(files[2], picture)
    return files


def token_statistics_markdown(results: Mapping[str, Any]) -> str:
    """
    Language statistics as a page.

    Args:
        results (`dict`): from [`TokenStatistics.results`].
    """
    new_words = results["new_words"]
    of_model = f" of {_code(results['model'])}" if results.get("model") else ""
    parts = [
        f"# Language statistics of visual tokens{of_model}",
        f"{results['num_images']:,} images, {results['num_patches']:,} patches (without those of the border with "
        f"which an image is padded to a square), a vocabulary of {results['vocab_size']:,} tokens. "
        f"{results['distinct_words']:,} of these are the most probable word of a patch. In brackets: 95 % intervals, "
        f"bootstrap of {results['num_resamples']} resamples of whole images (seed {results['seed']}).",
        "![Rank and frequency; distinct and new words](token_statistics.png)",
        "## Zipf's law",
        "Exponent s of p(rank) ∝ rank^-s by maximum likelihood, and its Kolmogorov-Smirnov distance from the counts. "
        f"Frequent ranks are the first ones, as many as there are words found in at least {FREQUENT} images (or "
        f"expected at least {FREQUENT} times): their order is certain, while rare words that chance left out make the "
        "exponent of all ranks too small.",
        _zipf_table(results["zipf"]),
        "## Entropy (nats)",
        "Of the counts as they are, and too small as long as further images bring new words. Intervals are those of "
        "what all images would give, in which a number of these few need not lie; at their upper end, words that no "
        "image had are spread evenly over the rest of the vocabulary.",
        _entropy_table(results["entropy"]),
        "## New words",
        f"Of another image {_number(new_words['expected_in_another_image'])} words are expected that no image before "
        "it had as the most probable word of a patch (Good and Turing).",
        _curve_table(new_words),
        "## Kinds of tokens",
        _kind_table(results["kinds"]),
        f"## The {min(SHOWN_WORDS, len(results['top_words']))} most frequent words",
        _word_table(results["top_words"][:SHOWN_WORDS]),
    ]
    if results.get("unreadable"):
        parts.append(f"{len(results['unreadable'])} images that cannot be read were left out: see the JSON file.")
    if results.get("command"):
        parts.append(f"Written by `{results['command']}`.")
    return "\n\n".join(parts) + "\n"


def _zipf_table(zipf: Mapping[str, Any]) -> str:
    lines = ["| counted | ranks | exponent s | KS distance |", "|---|---|---|---|"]
    for name, label in COUNTED.items():
        for which, of_ranks in RANKS.items():
            fit = zipf[name][which]
            fields = ["too few", "–", "–"]
            if fit is not None:
                exponent = _with_interval({"value": fit["exponent"], "interval": fit["interval"]})
                fields = [f"{fit['num_ranks']:,}", exponent, f"{fit['distance']:.3f}"]
            lines.append(f"| {label} | {of_ranks}: {fields[0]} | {fields[1]} | {fields[2]} |")
    return "\n".join(lines)


def _entropy_table(entropies: Mapping[str, Any]) -> str:
    lines = ["| | nats | perplexity |", "|---|---|---|"]
    for name, label in ENTROPIES.items():
        perplexity = "" if name == "mutual_information" else f"{np.exp(entropies[name]['value']):,.1f}"
        lines.append(f"| {label} | {_with_interval(entropies[name])} | {perplexity} |")
    return "\n".join(lines)


def _curve_table(new_words: Mapping[str, Any]) -> str:
    images, in_order = new_words["images"], new_words["distinct_words_in_order"]
    shown = sorted({round(place) for place in np.linspace(0, len(images) - 1, min(len(images), 8))})
    lines = ["| images | distinct words, in the order read | in a random order |", "|---|---|---|"]
    for place in shown:
        expected = new_words["distinct_words_expected"][place]
        lines.append(f"| {images[place]:,} | {in_order[place]:,} | {expected:,.1f} |")
    return "\n".join(lines)


def _kind_table(kinds: Mapping[str, Any]) -> str:
    lines = ["| kind | tokens | share of most probable words | share of P' |", "|---|---|---|---|"]
    for kind, shares in kinds.items():
        if shares["num_tokens"]:
            columns = " | ".join(_with_interval(shares[name], percent=True) for name in COUNTED)
            lines.append(f"| {kind} | {shares['num_tokens']:,} | {columns} |")
    return "\n".join(lines)


def _word_table(words: list[Mapping[str, Any]]) -> str:
    lines = ["| rank | word | kind | patches | share | images | share of P' |", "|---|---|---|---|---|---|---|"]
    for word in words:
        lines.append(
            f"| {word['rank']} | {_code(word['word'])} | {word['kind']} | {word['count']:,} | {word['share']:.2%} | "
            f"{word['num_images']:,} | {word['expected_share']:.2%} |"
        )
    return "\n".join(lines)


def _code(text: str) -> str:
    """A label as Markdown shows it, whatever signs it holds."""
    escaped = text.replace("|", "\\|")
    fence = "``" if "`" in text else "`"
    return f"{fence} {escaped} {fence}" if "`" in text else f"{fence}{escaped}{fence}"


def _with_interval(estimate: Mapping[str, Any], percent: bool = False) -> str:
    def show(value: float) -> str:
        return f"{100 * value:.1f} %" if percent else _number(value)

    interval = estimate.get("interval")
    return show(estimate["value"]) + (f" [{show(interval[0])}, {show(interval[1])}]" if interval else "")


def _number(value: float) -> str:
    return f"{value:.3f}"


def draw_token_statistics(results: Mapping[str, Any]) -> bytes:
    """
    Draws rank and frequency with the fitted laws, how many distinct words images have, and how many are new.

    Args:
        results (`dict`): from [`TokenStatistics.results`].

    Returns:
        `bytes`: a PNG file.

    Raises:
        ImportError: if matplotlib is not installed; names the extra.
    """
    figure = require("matplotlib.figure", "draw").Figure(figsize=(14.0, 4.6), layout="constrained")
    ranks, distinct, new = figure.subplots(1, 3, width_ratios=[1.35, 1, 1])
    _draw_ranks(ranks, results)
    _draw_distinct(distinct, results)
    _draw_new(new, results)
    for axes in (ranks, distinct, new):
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160)
    return stream.getvalue()


def _draw_ranks(axes: Any, results: Mapping[str, Any]) -> None:
    for name, label in COUNTED.items():
        curve = results["rank_frequency"][name]
        axes.plot(
            curve["rank"], curve["share"], marker="o" if name == "most_probable" else "", markersize=3,
            linestyle="none" if name == "most_probable" else "-", color=COLOURS[name], label=label,
        )  # fmt: skip
        fit = results["zipf"][name]["frequent_ranks"] or results["zipf"][name]["all_ranks"]
        if fit is not None:
            _draw_law(axes, fit, curve, COLOURS[name])
    fonts = Fonts()
    for word in results["top_words"][:NAMED_WORDS]:
        axes.annotate(
            fonts.printable(word["word"])[1], (word["rank"], word["share"]), (5, 4), textcoords="offset points",
            fontsize=8, color=GREY, parse_math=False,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    lowest = 0.2 / results["num_patches"]
    axes.set_ylim(lowest, 1.5)
    axes.set_xlim(0.7, 1.5 * max(_last_rank(curve, lowest) for curve in results["rank_frequency"].values()))
    axes.set_xlabel("rank of the word")
    axes.set_ylabel("share of the patches")
    axes.set_title("Rank and frequency", loc="left", fontweight="bold")
    axes.legend(frameon=False, fontsize=8, loc="lower left")


def _last_rank(curve: Mapping[str, Any], lowest: float) -> int:
    return max((rank for rank, share in zip(curve["rank"], curve["share"]) if share >= lowest), default=1)


def _draw_law(axes: Any, fit: Mapping[str, Any], curve: Mapping[str, Any], colour: str) -> None:
    """The fitted law, scaled to what the ranks that it was fitted to have of all counts, and how it goes on."""
    last = fit["num_ranks"]
    first_share = fit["share_fitted"] * zipf_probabilities(fit["exponent"], last)[0]
    for ends, style, width in (((1, last), (0, (5, 2)), 1.8), ((last, curve["rank"][-1]), (0, (1, 2)), 1.2)):
        label = f"s = {fit['exponent']:.2f} over {last:,} ranks, KS {fit['distance']:.3f}" if ends[0] == 1 else None
        shares = [first_share * rank ** -fit["exponent"] for rank in ends]
        axes.plot(ends, shares, linestyle=style, linewidth=width, color=colour, alpha=0.8, label=label)


def _draw_distinct(axes: Any, results: Mapping[str, Any]) -> None:
    new_words = results["new_words"]
    axes.plot(new_words["images"], new_words["distinct_words_in_order"], color="#9dbfdd", label="in the order read")
    axes.plot(
        new_words["images"], new_words["distinct_words_expected"], color=COLOURS["most_probable"],
        label="in a random order, mean",
    )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images")
    axes.set_ylabel("distinct words")
    axes.set_title("Distinct words", loc="left", fontweight="bold")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _draw_new(axes: Any, results: Mapping[str, Any]) -> None:
    new_words = results["new_words"]
    axes.plot(
        new_words["images"], new_words["new_words_expected"], color=COLOURS["most_probable"],
        marker="o" if len(new_words["images"]) < 3 else "",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("number of the image")
    axes.set_ylabel("new words, mean of random orders")
    axes.set_title("New words per image", loc="left", fontweight="bold")


__all__ = ["draw_token_statistics", "token_statistics_markdown", "write_token_statistics"]
