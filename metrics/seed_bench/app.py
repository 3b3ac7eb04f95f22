"""The widget of this metric, where its folder is a Space."""

from pathlib import Path

import evaluate
from evaluate.utils import launch_gradio_widget

launch_gradio_widget(evaluate.load(str(Path(__file__).with_name("seed_bench.py"))))
