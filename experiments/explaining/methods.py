"""All methods by name. Each takes the network, the pictures and the flags, and yields what it has drawn."""

from collections.abc import Callable, Iterator

from experiments.command_line.explain_flags import ExplainFlags
from experiments.explaining.activations import strongest_activations
from experiments.explaining.crf_steps import crf_steps
from experiments.explaining.deconvnet import deconvnet
from experiments.explaining.examples import Examples
from experiments.explaining.explanation import Explanation
from experiments.explaining.filters import first_filters
from experiments.explaining.gates import gates_by_class
from experiments.explaining.gradcam import gradcam
from experiments.explaining.occlusion import occlusion
from experiments.explaining.receptive_fields import receptive_field
from experiments.inference.trained import TrainedNetwork

METHODS: dict[str, Callable[[TrainedNetwork, Examples, ExplainFlags], Iterator[Explanation]]] = {
    "gradcam": gradcam,
    "occlusion": occlusion,
    "deconvnet": deconvnet,
    "activations": strongest_activations,
    "filters": first_filters,
    "se_gates": gates_by_class,
    "receptive_field": receptive_field,
    "crf": crf_steps,
}
