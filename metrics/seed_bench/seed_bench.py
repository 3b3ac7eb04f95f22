"""SEED-Bench as a module of evaluate."""

import datasets
import evaluate

from vistok.evaluation.seed_bench import score_seed_bench

_DESCRIPTION = """
Accuracy of multiple-choice answers in each dimension of SEED-Bench, and the simple mean of the dimensions.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: list of the positions of the choices made, from 0: those whose text the model finds most likely.
    references: list of the positions of the right choices.
    dimensions: list of the name of each question's dimension.
Returns:
    accuracy (percent, the simple mean of the dimensions), pooled_accuracy (of all questions alike), num_questions, and
    bins: accuracy and num_questions of each dimension.
Examples:
    >>> metric = evaluate.load("metrics/seed_bench")
    >>> metric.compute(predictions=[0, 3], references=[0, 1], dimensions=["Instance Identity"] * 2)["accuracy"]
    50.0
"""

_CITATION = """
@article{li2023seedbench,
  title = {{SEED-Bench}: Benchmarking Multimodal {LLMs} with Generative Comprehension},
  author = {Li, Bohao and Wang, Rui and Wang, Guangzhi and Ge, Yuying and Ge, Yixiao and Shan, Ying},
  year = {2023},
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class SEEDBench(evaluate.Metric):
    """Accuracy of multiple-choice answers in each dimension of SEED-Bench, and the simple mean of the dimensions."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "references": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://github.com/AILab-CVC/SEED-Bench"],
        )

    def _compute(self, predictions, references, dimensions, num_choices=4):
        if len(dimensions) != len(references):
            raise ValueError(f"{len(dimensions)} dimensions for {len(references)} references: give each one.")
        choices = ["choice"] * num_choices
        questions = [
            {"answer": answer, "choices": choices, "dimension": dimension}
            for answer, dimension in zip(references, dimensions)
        ]
        return score_seed_bench(predictions, questions)
