"""POPE as a module of evaluate."""

import datasets
import evaluate

from vistok.evaluation.pope import score_pope

_DESCRIPTION = """
Whether a model sees objects that are not in the image: accuracy, F1 and the share of "yes".
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: list of texts that a model generated, one for each question "Is there a … in the image?".
    references: list of "yes" and "no".
    splits: optional list of the split of each question ("random", "popular", "adversarial"); with it, the result has
        bins.
Returns:
    accuracy, precision, recall, f1, yes_ratio (of the predictions), all in percent, num_questions, num_unanswered
    (neither yes nor no), num_empty (without a letter or digit), and, with splits, bins: the same for each.
Examples:
    >>> metric = evaluate.load("metrics/pope")
    >>> metric.compute(predictions=["Yes, there is.", "There is not."], references=["yes", "no"])["f1"]
    100.0
"""

_CITATION = """
@inproceedings{li2023pope,
  title = {Evaluating Object Hallucination in Large Vision-Language Models},
  author = {Li, Yifan and Du, Yifan and Zhou, Kun and Wang, Jinpeng and Zhao, Wayne Xin and Wen, Ji-Rong},
  booktitle = {EMNLP},
  year = {2023},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class POPE(evaluate.Metric):
    """Whether a model sees objects that are not in the image: accuracy, F1 and the share of "yes"."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                }
            ),
            reference_urls=["https://github.com/AoiDragon/POPE"],
        )

    def _compute(self, predictions, references, splits=None):
        if splits is not None and len(splits) != len(references):
            raise ValueError(f"{len(splits)} splits for {len(references)} references: give each one.")
        of_question = splits if splits is not None else [None] * len(references)
        questions = [{"label": label, "split": split} for label, split in zip(references, of_question)]
        return score_pope(predictions, questions)
