"""CIDEr-D as a module of evaluate."""

import datasets
import evaluate

from vistok.evaluation.cider import score_captions

_DESCRIPTION = """
CIDEr-D of image captions, as the COCO caption evaluation computes it, without Java.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: list of captions, one for each image.
    references: list of lists of reference captions, one or more for each image.
Returns:
    cider (times 100, as papers print it), num_questions (images), num_unanswered (empty captions).
Examples:
    >>> metric = evaluate.load("metrics/cider_d")
    >>> round(metric.compute(predictions=["a red car", "two dogs"], references=[["a red car"], ["a cat"]])["cider"], 1)
    375.0
"""

_CITATION = """
@inproceedings{vedantam2015cider,
  title = {{CIDEr}: Consensus-based Image Description Evaluation},
  author = {Vedantam, Ramakrishna and Lawrence Zitnick, C. and Parikh, Devi},
  booktitle = {CVPR},
  year = {2015},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class CIDErD(evaluate.Metric):
    """CIDEr-D of image captions, as the COCO caption evaluation computes it, without Java."""

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
            reference_urls=["https://arxiv.org/abs/1411.5726"],
        )

    def _compute(self, predictions, references):
        return score_captions(predictions, references)
