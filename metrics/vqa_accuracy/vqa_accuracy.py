"""VQA Accuracy as a module of evaluate."""

import datasets
import evaluate

from vistok.evaluation.vqa_accuracy import score_vqa

_DESCRIPTION = """
Accuracy of short answers to questions about images, with several annotators, as VQAv2 defines it.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: list of texts, one for each question.
    references: list of lists of texts: the annotators' answers to each question, ten in VQAv2, one or more.
    match: "exact" (default), the official rule, or "contains", that of the GVT paper's code: an answer that occurs
        within the prediction agrees with it. The two give different numbers.
    vocabulary: optional list of answers; questions without an answer in it are left out. The official rule leaves out
        none.
    types: optional list of the type of each question; with it, the result has bins.
Returns:
    accuracy (percent), num_questions, num_unanswered, num_dropped, match, and, with types, bins: the same for each.
Examples:
    >>> metric = evaluate.load("metrics/vqa_accuracy")
    >>> metric.compute(predictions=["dog"], references=[["dog"] * 3 + ["cat"] * 7])["accuracy"]
    90.0
"""

_CITATION = """
@inproceedings{goyal2017vqav2,
  title = {Making the {V} in {VQA} Matter: Elevating the Role of Image Understanding in Visual Question Answering},
  author = {Goyal, Yash and Khot, Tejas and Summers-Stay, Douglas and Batra, Dhruv and Parikh, Devi},
  booktitle = {CVPR},
  year = {2017},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class VQAAccuracy(evaluate.Metric):
    """Accuracy of short answers to questions about images, with several annotators, as VQAv2 defines it."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.List(datasets.Value("string")),
                }
            ),
            reference_urls=["https://github.com/GT-Vision-Lab/VQA"],
        )

    def _compute(self, predictions, references, match="exact", vocabulary=None, types=None):
        return score_vqa(predictions, references, match, vocabulary, types)
