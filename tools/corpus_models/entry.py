"""What is known of one model of the corpus, and where it is written."""
import pathlib
from dataclasses import dataclass, field
import onnx


@dataclass
class Corpus:
    """The models made so far, by file name without suffix."""

    folder: pathlib.Path
    only: str = ""
    entries: list = field(default_factory=list)

    def wants(self, name):
        return self.only in name

    def path(self, name):
        return self.folder / f"{name}.onnx"

    def add(self, name, architecture, exporter, shapes=None, ints=None):
        """`shapes` of inputs that the file leaves open, `ints`: bounds of integer inputs."""
        entry = {"file": f"{name}.onnx", "architecture": architecture, "exporter": exporter}
        if shapes:
            entry["shapes"] = shapes
        if ints:
            entry["ints"] = ints
        self.entries.append(entry)

    def save(self, model, name, architecture, exporter, **known):
        if self.wants(name):
            onnx.save(model, self.path(name))
            self.add(name, architecture, exporter, **known)
