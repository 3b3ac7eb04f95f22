"""GVTBench Multi-Class Identification as a module of evaluate."""

import datasets
import evaluate

from vistok.evaluation.gvtbench_scoring import score_multi_class_identification

_DESCRIPTION = """
Accuracy of answers to questions whether a class of objects exists in an image.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: list of texts that a model generated, one for each question "Does … exist in the image?".
    references: list of "Yes." and "No.".
    n_obj_exist: optional list of how many objects each image holds; with it, the result has bins.
    mode: "reference" (default), bit for bit the code of the GVT paper, or "strict": the first "yes" or "no" that is a
        word of its own.
Returns:
    accuracy (percent), num_questions, num_unanswered (neither yes nor no), yes_ratio (percent), mode, and, with
    n_obj_exist, bins: the same for images with fewer than 10, 10 to 19, and 20 or more objects.
Examples:
    >>> metric = evaluate.load("metrics/gvtbench_mci")
    >>> metric.compute(predictions=["Yes, it does.", "Yes."], references=["Yes.", "No."])["accuracy"]
    50.0
"""

_CITATION = """
@inproceedings{wang2024gvt,
  title = {What Makes for Good Visual Tokenizer Supervision for Large Language Models?},
  author = {Wang, Guangzhi and Ge, Yixiao and Ding, Xiaohan and Kankanhalli, Mohan and Shan, Ying},
  year = {2023},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class GVTBenchMultiClassIdentification(evaluate.Metric):
    """Accuracy of answers to questions whether a class of objects exists in an image."""

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
            reference_urls=["https://github.com/TencentARC/GVT"],
        )

    def _compute(self, predictions, references, n_obj_exist=None, mode="reference"):
        if n_obj_exist is not None and len(n_obj_exist) != len(references):
            raise ValueError(f"{len(n_obj_exist)} n_obj_exist for {len(references)} references: give each one.")
        counts = n_obj_exist if n_obj_exist is not None else [0] * len(references)
        questions = [{"text_out": answer, "n_obj_exist": count} for answer, count in zip(references, counts)]
        result = score_multi_class_identification(predictions, questions, mode)
        if n_obj_exist is None:
            del result["bins"]
        return result
