# /// script
# requires-python = ">=3.11"
# dependencies = ["onnx==1.23.2"]
# ///
"""Compares proto/onnx.proto with the descriptor that the onnx package ships.

    uv run tools/check_proto.py [proto/onnx.proto]

Messages, enums and their values, and each field's number, type, label, packing and oneof must be equal both ways.
Prints the differences and exits 1 if there are any.
"""
import argparse, pathlib, re, sys
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from onnx import onnx_ml_pb2

SCALARS = {"double", "float", "int32", "int64", "uint32", "uint64", "bool", "string", "bytes"}
TOKEN = re.compile(r'//[^\n]*|\s+|(?P<token>"[^"]*"|[\w.]+|[{}=;\[\],])')
FIELD = re.compile(r"^(?:(optional|required|repeated) )?([\w.]+) (\w+) = (\d+)(?: \[ packed = (true|false) \])?$")
VALUE = re.compile(r"^(\w+) = (-?\d+)$")


def tokens(text):
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            sys.exit(f"not understood: {text[at:at + 40]!r}")
        at = match.end()
        if match["token"]:
            yield match["token"]


def written(text):
    """The facts of a .proto text: {message or enum: {field or value: facts}}, names fully qualified."""
    facts, scopes, statement = {}, [], []
    package = ""
    for token in tokens(text):
        if token == "{":
            kind, name = statement
            scopes.append((kind, name))
            if kind != "oneof":
                facts[(kind, qualified(package, scopes))] = {}
        elif token == "}":
            scopes.pop()
        elif token == ";":
            line = " ".join(statement)
            if statement[0] == "package":
                package = statement[1]
            elif statement[0] != "syntax":
                add(facts, qualified(package, scopes), scopes, line)
        else:
            statement.append(token)
            continue
        statement = []
    return {key: {name: resolved(key[1], fact, facts) for name, fact in members.items()} for key, members in facts.items()}


def qualified(package, scopes):
    return ".".join([package, *(name for kind, name in scopes if kind != "oneof")])


def add(facts, owner, scopes, line):
    kind, name = scopes[-1]
    match = (VALUE if kind == "enum" else FIELD).match(line)
    if not match:
        sys.exit(f"not understood in {owner}: {line}")
    if kind == "enum":
        facts[("enum", owner)][match[1]] = {"number": int(match[2])}
        return
    facts[("message", owner)][match[3]] = {
        "label": match[1] or "optional", "type": match[2], "number": int(match[4]), "packed": match[5] == "true",
        "oneof": name if kind == "oneof" else None}


def resolved(owner, fact, facts):
    """A field with its type's full name, looked up from the innermost scope outwards."""
    if fact.get("type") is None or fact["type"] in SCALARS:
        return fact
    scope = owner
    while scope:
        for kind in ("message", "enum"):
            if (kind, f"{scope}.{fact['type']}") in facts:
                return fact | {"type": f"{kind} {scope}.{fact['type']}"}
        scope = scope.rpartition(".")[0]
    sys.exit(f"{owner}: no type {fact['type']}")


def shipped(file):
    """The facts of a descriptor, in the form of `written`."""
    facts = {}

    def enum(descriptor, scope):
        facts[("enum", f"{scope}.{descriptor.name}")] = {v.name: {"number": v.number} for v in descriptor.value}

    def message(descriptor, scope):
        name = f"{scope}.{descriptor.name}"
        facts[("message", name)] = {f.name: field(f, descriptor) for f in descriptor.field}
        for nested in descriptor.nested_type:
            message(nested, name)
        for nested in descriptor.enum_type:
            enum(nested, name)

    def field(f, descriptor):
        kind = FieldDescriptorProto.Type.Name(f.type).removeprefix("TYPE_").lower()
        return {"label": FieldDescriptorProto.Label.Name(f.label).removeprefix("LABEL_").lower(),
                "type": f"{kind} {f.type_name.lstrip('.')}" if f.type_name else kind,
                "number": f.number, "packed": f.options.packed,
                "oneof": descriptor.oneof_decl[f.oneof_index].name if f.HasField("oneof_index") else None}

    for descriptor in file.message_type:
        message(descriptor, file.package)
    for descriptor in file.enum_type:
        enum(descriptor, file.package)
    return facts


def differences(ours, theirs):
    for kind, name in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get((kind, name)), theirs.get((kind, name))
        if a is None or b is None:
            yield f"{kind} {name}: only in {'the package' if a is None else 'the file'}"
            continue
        for member in sorted(a.keys() | b.keys()):
            if a.get(member) != b.get(member):
                yield f"{name}.{member}: file {a.get(member)}, package {b.get(member)}"


def main():
    parser = argparse.ArgumentParser()
    default = pathlib.Path(__file__).parent.parent / "proto" / "onnx.proto"
    parser.add_argument("proto", type=pathlib.Path, nargs="?", default=default)
    args = parser.parse_args()
    file = FileDescriptorProto()
    onnx_ml_pb2.DESCRIPTOR.CopyToProto(file)
    ours, theirs = written(args.proto.read_text()), shipped(file)
    found = list(differences(ours, theirs))
    if found:
        print(*found, sep="\n")
        sys.exit(1)
    messages = [members for (kind, _), members in ours.items() if kind == "message"]
    enums = [members for (kind, _), members in ours.items() if kind == "enum"]
    print(f"equal: {len(messages)} messages, {sum(map(len, messages))} fields, "
          f"{len(enums)} enums, {sum(map(len, enums))} values")


if __name__ == "__main__":
    main()
