"""Pretraining without labels: a loss on the clips themselves, with parts that the output names (`<part>_loss`)."""

from transformers import AutoModelForPreTraining

from .task import Task

PRETRAINING = Task(
    name="pretraining", heads=("ForPreTraining",), auto_class=AutoModelForPreTraining, title="pretraining"
)
