"""The formats of export.py: what each needs, and how its files are named."""

NEEDS = {"torch_export": (), "onnx": ("onnx", "onnxscript", "onnxruntime")}
NEEDS["openvino"] = (*NEEDS["onnx"], "openvino")
"""Packages."""
SUFFIXES = {"torch_export": ".pt2", "onnx": ".onnx", "openvino": ".xml"}
