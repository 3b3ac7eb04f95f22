"""GVTBench Object Counting as a module of evaluate."""

import datasets
import evaluate

from vistok.evaluation.gvtbench_scoring import score_object_counting

_DESCRIPTION = """
Accuracy, mean absolute and root mean square error of counts of objects in images, as a model says them.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: list of texts that a model generated, one for each question "How many … are there in the image?".
    references: list of the right counts, as text ("3").
    mode: "reference" (default), bit for bit the code of the GVT paper, or "strict": the first number that stands
        alone, in digits or in words up to twenty, in any case.
Returns:
    accuracy (percent), mae, rmse, num_questions, num_unanswered (texts without a number), mode, and bins: the same for
    right answers from 0 to 2, 3 to 5, 6 to 8, …
Examples:
    >>> metric = evaluate.load("metrics/gvtbench_oc")
    >>> metric.compute(predictions=["3 dogs.", "There is one cat."], references=["3", "2"])["accuracy"]
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
class GVTBenchObjectCounting(evaluate.Metric):
    """Accuracy, mean absolute and root mean square error of counts of objects in images, as a model says them."""

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

    def _compute(self, predictions, references, mode="reference"):
        questions = [{"text_out": answer} for answer in references]
        return score_object_counting(predictions, questions, mode)
