"""Small reference networks, and how any model is named, built and called."""

from hqde.models.calling import ModelInputs, call_model
from hqde.models.cnn import CNN
from hqde.models.dropout import Dropout, draw_dropout_from, draw_mask, scaled_mask, set_mask_source
from hqde.models.max_pool import HalvingMaxPool, halves
from hqde.models.mlp import MLP
from hqde.models.normalization import NORMS
from hqde.models.resnet import ResNet18
from hqde.models.resolution import BUILT_IN, ModelFactory
from hqde.models.spec import JSON, ModelSpec, model_spec
from hqde.models.tracing import called_once, flows_alike, is_hooked

__all__ = [
    "BUILT_IN",
    "CNN",
    "JSON",
    "MLP",
    "NORMS",
    "Dropout",
    "HalvingMaxPool",
    "ModelFactory",
    "ModelInputs",
    "ModelSpec",
    "ResNet18",
    "call_model",
    "called_once",
    "draw_dropout_from",
    "draw_mask",
    "flows_alike",
    "halves",
    "is_hooked",
    "model_spec",
    "scaled_mask",
    "set_mask_source",
]
