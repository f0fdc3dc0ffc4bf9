# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.31.1"]
# ///
"""An independent reference: every scheme in plain numpy, from the equations of arXiv 2107.04386 and by dense SVDs.

    uv run tools/reference.py freeze > fixtures/reference.json
    uv run tools/reference.py compare MODEL.onnx --binary target/release/onnx-jmd [--ratio 8] [--schemes ljsvd,tt]

`freeze` solves small problems drawn by a formula that any language can follow; `cargo test` compares the library with the result.
`compare` runs the binary on a whole model with its plain weights, repeats each group at the ranks of the report, and compares
reconstruction errors, stored parameters and the products of the written factors. Factors themselves are never compared: they are
unique up to an invertible matrix only.
"""
import argparse, json, pathlib, subprocess, sys, tempfile
import numpy as np

MASK = (1 << 64) - 1
# Turns of the alternating schemes in small problems, enough to converge.
TURNS = 400
# Schemes of two terms, each fitted to what the other leaves.
ALTERNATING = ("bi-jsvd", "pcsvd", "nc-ctd")


def uniform(seed, count):
    """Numbers in [-1/2, 1/2) by splitmix64, the k-th from state seed + (k+1) * 0x9E3779B97F4A7C15."""
    out = np.empty(count)
    for k in range(count):
        z = (seed + (k + 1) * 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out[k] = ((z ^ (z >> 31)) >> 11) * 2.0**-53 - 0.5
    return out


# Kernels W[o, i, y, x] as matrices. Rows carry the input channel, columns the output channel.
AXES = {"spatial": ((2, 1), (3, 0)), "filter-bank": ((2, 3, 1), (0,)), "pointwise-first": ((1,), (2, 3, 0))}


def unfold(w, unfolding):
    rows, columns = AXES[unfolding]
    return w.transpose(rows + columns).reshape(int(np.prod([w.shape[a] for a in rows])), -1)


def fold(matrix, shape, unfolding):
    rows, columns = AXES[unfolding]
    axes = rows + columns
    return matrix.reshape([shape[a] for a in axes]).transpose(np.argsort(axes))


def truncated(m, rank):
    u, s, vt = np.linalg.svd(m, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def left(ms, rank):
    """min sum ||W_i - A B_i||^2: the leading left singular vectors of [W_1 ... W_n]."""
    u = np.linalg.svd(np.hstack(ms), full_matrices=False)[0][:, :rank]
    return [u @ (u.T @ m) for m in ms]


def right(ms, rank):
    """min sum ||W_i - A_i B||^2: the same of the stack, transposed."""
    v = np.linalg.svd(np.vstack(ms), full_matrices=False)[2][:rank].T
    return [(m @ v) @ v.T for m in ms]


def alternate(ms, first, second, turns):
    """Two terms, each fitted to what the other leaves, starting with the first on the whole."""
    a = first(ms)
    b = [np.zeros_like(m) for m in ms]
    for _ in range(turns):
        b = second([m - x for m, x in zip(ms, a)])
        a = first([m - y for m, y in zip(ms, b)])
    return [x + y for x, y in zip(a, b)]


def tucker(ws, rank, shared_in=False, shared_out=False):
    """Input side first, then the output side of what that keeps (sequentially truncated HOSVD)."""
    def basis(grams, shared, r):
        grams = [sum(grams)] * len(grams) if shared else grams
        return [np.linalg.eigh(g)[1][:, ::-1][:, :r] for g in grams]
    ins = [w.transpose(1, 0, 2, 3).reshape(w.shape[1], -1) for w in ws]
    us = basis([m @ m.T for m in ins], shared_in, rank)
    ws = [np.einsum("oiyx,ir,jr->ojyx", w, u, u) for w, u in zip(ws, us)]
    outs = [w.reshape(w.shape[0], -1) for w in ws]
    vs = basis([m @ m.T for m in outs], shared_out, rank)
    return [np.einsum("oiyx,or,pr->piyx", w, v, v) for w, v in zip(ws, vs)]


def products(scheme, unfolding, ws, ranks, turns=TURNS):
    """What the members become."""
    if scheme == "nc-ctd":
        # One train for all is that of the mean of what it is to stand for.
        common = lambda x: tucker([sum(x) / len(x)], ranks[0]) * len(x)
        return alternate(ws, common, lambda x: tucker(x, ranks[1]), turns)
    if unfolding == "tucker":
        sides = {"separate": (False, False), "ljsvd": (True, False), "rjsvd-1": (False, True), "rjsvd-2": (False, True),
                 "bi-jsvd": (True, True)}
        return tucker(ws, ranks[0], *sides[scheme])
    ms = [unfold(w, unfolding) for w in ws]
    found = {
        "separate": lambda: [truncated(m, ranks[0]) for m in ms],
        "ljsvd": lambda: left(ms, ranks[0]),
        "rjsvd-1": lambda: right(ms, ranks[0]),
        "rjsvd-2": lambda: right(ms, ranks[0]),
        "bi-jsvd": lambda: alternate(ms, lambda x: left(x, ranks[0]), lambda x: right(x, ranks[1]), turns),
        "pcsvd": lambda: alternate(ms, lambda x: right(x, ranks[0]), lambda x: [truncated(m, ranks[1]) for m in x], turns),
    }[scheme]()
    return [fold(m, w.shape, unfolding) for m, w in zip(found, ws)]


def stored(scheme, unfolding, ws, ranks):
    """Elements stored: each factor once a member, a shared one once."""
    if scheme == "nc-ctd":
        return stored("separate", unfolding, ws[:1], ranks[:1]) + stored("separate", unfolding, ws, ranks[1:])
    if unfolding == "tucker":
        r, total = ranks[0], 0
        for at, w in enumerate(ws):
            out, inputs, kh, kw = w.shape
            a, b = min(r, inputs), min(r, out)
            total += a * b * kh * kw
            total += a * inputs if at == 0 or scheme not in ("ljsvd", "bi-jsvd") else 0
            total += b * out if at == 0 or scheme not in ("rjsvd-1", "rjsvd-2", "bi-jsvd") else 0
        return total
    sizes = [unfold(w, unfolding).shape for w in ws]
    rows, columns = [s[0] for s in sizes], [s[1] for s in sizes]
    own, one = lambda r: r * (sum(rows) + sum(columns)), {"left": rows[0] + sum(columns), "right": sum(rows) + columns[0]}
    return {
        "separate": lambda: own(ranks[0]), "ljsvd": lambda: ranks[0] * one["left"],
        "rjsvd-1": lambda: ranks[0] * one["right"], "rjsvd-2": lambda: ranks[0] * one["right"],
        "bi-jsvd": lambda: ranks[0] * one["left"] + ranks[1] * one["right"],
        "pcsvd": lambda: ranks[0] * one["right"] + own(ranks[1]),
    }[scheme]()


def error(ws, found):
    lost = sum(np.sum((w - f) ** 2) for w, f in zip(ws, found))
    return float(np.sqrt(lost / sum(np.sum(w**2) for w in ws)))


def freeze(_):
    cases = []
    for seed, shapes in [(1, [[6, 4, 3, 3]] * 3), (2, [[5, 7, 3, 3]] * 2), (3, [[8, 6, 1, 1]] * 4), (4, [[6, 5, 5, 3]] * 1)]:
        sizes = [int(np.prod(s)) for s in shapes]
        drawn = uniform(seed, sum(sizes))
        ws = [part.reshape(s) for part, s in zip(np.split(drawn, np.cumsum(sizes)[:-1]), shapes)]
        for unfolding in ["spatial", "filter-bank", "pointwise-first", "tucker"]:
            if unfolding == "tucker" and shapes[0][2:] == [1, 1]:
                continue
            for scheme in ["separate", "ljsvd", "rjsvd-2", "bi-jsvd", "pcsvd", "nc-ctd"]:
                if (unfolding == "tucker" and scheme == "pcsvd") or (unfolding != "tucker" and scheme == "nc-ctd"):
                    continue
                for rank in [2, 3]:
                    two = scheme == "nc-ctd" or (scheme in ("bi-jsvd", "pcsvd") and unfolding != "tucker")
                    ranks = [max(1, round(rank / 2)), rank - max(1, round(rank / 2))] if two else [rank]
                    found = products(scheme, unfolding, ws, ranks)
                    cases.append({"seed": seed, "shapes": shapes, "unfolding": unfolding, "scheme": scheme, "ranks": ranks,
                                  "error": error(ws, found), "stored": stored(scheme, unfolding, ws, ranks),
                                  "first": [float(x) for x in found[0].ravel()[:4]]})
    singular = []
    for seed, shape in [(1, [6, 4, 3, 3]), (2, [5, 7, 3, 3])]:
        w = uniform(seed, int(np.prod(shape))).reshape(shape)
        for unfolding in AXES:
            values = np.linalg.svd(unfold(w, unfolding), compute_uv=False)
            singular.append({"seed": seed, "shape": shape, "unfolding": unfolding, "squares": [float(v * v) for v in values]})
    lines = lambda rows: ",\n".join(json.dumps(row) for row in rows)
    print('{"cases": [\n' + lines(cases) + '\n], "spectra": [\n' + lines(singular) + "\n]}")


def compose(first, second):
    """The kernel of `second` after `first`."""
    (_, i, h1, w1), (o, _, h2, w2) = first.shape, second.shape
    whole = np.zeros((o, i, h1 + h2 - 1, w1 + w2 - 1))
    for y in range(h2):
        for x in range(w2):
            whole[:, :, y:y + h1, x:x + w1] += np.einsum("om,miyx->oiyx", second[:, :, y, x], first)
    return whole


def written(graph, kernels, output):
    """The kernel that the written nodes for one convolution compute together, walked back from its output."""
    made = {n.output[0]: n for n in graph.node}
    node = made[output]
    if node.op_type == "Add":
        return sum(written(graph, kernels, i) for i in node.input)
    chain = [kernels[node.input[1]]]
    while node.input[0] in made and "/jmd_" in node.input[0]:
        node = made[node.input[0]]
        chain.append(kernels[node.input[1]])
    product = chain.pop()
    while chain:
        product = compose(product, chain.pop())
    return product


def compare(options):
    import onnx
    from onnx import numpy_helper
    from cross_check import only_convolutions
    tensors = lambda g: {t.name: numpy_helper.to_array(t).astype(np.float64) for t in g.initializer}
    before = onnx.load(options.model).graph
    kernels = tensors(before)
    convs = {n.name or n.output[0]: n for n in before.node if n.op_type == "Conv"}
    worst = 0.0
    print("| scheme | groups | largest relative difference of errors | of products | parameters |\n|---|---|---|---|---|")
    for scheme in options.schemes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "out.onnx"
            command = [options.binary, options.model, out, "--ratio", str(options.ratio), "--scheme", scheme, "--calib", "none",
                       "--keep-bn", "--no-verify", "--quiet", "--allow-more-macs", "--json", "-", *only_convolutions(before)]
            report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            after = onnx.load(out).graph
        factors = tensors(after)
        errors, differences, counts = [0.0], [0.0], True
        for group in report["groups"]:
            nodes = [convs[name] for name in group["members"]]
            ws = [kernels[n.input[1]] for n in nodes]
            form, _, unfolding = group["scheme"].partition("/")
            unfolding = unfolding or "spatial"
            found = products(form, unfolding, ws, group["ranks"], turns=30)
            ours = group["reconstruction_error"]
            errors.append(abs(ours - error(ws, found)) / ours)
            if form not in ALTERNATING:
                for w, node, wanted in zip(ws, nodes, found):
                    gap = written(after, factors, node.output[0]) - wanted
                    differences.append(np.linalg.norm(gap) / np.linalg.norm(w))
            counts &= stored(form, unfolding, ws, group["ranks"]) == group["parameters_after"]
        # Alternating schemes have no closed form to hold products against.
        gaps = "-" if scheme in ALTERNATING else f"{max(differences):.1e}"
        print(f"| {scheme} | {len(report['groups'])} | {max(errors):.1e} | {gaps} | {'equal' if counts else 'DIFFER'} |")
        worst = max(worst, max(errors) if scheme not in ALTERNATING else 0.0, 0.0 if counts else 1.0)
    sys.exit(worst > 1e-6)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
commands = parser.add_subparsers(required=True)
commands.add_parser("freeze").set_defaults(run=freeze)
sub = commands.add_parser("compare")
sub.add_argument("model")
sub.add_argument("--binary", default="target/release/onnx-jmd")
sub.add_argument("--ratio", type=float, default=8.0)
sub.add_argument("--schemes", default="separate,ljsvd,rjsvd-1,rjsvd-2,bi-jsvd,pcsvd,tt,nc-ctd")
sub.set_defaults(run=compare)
options = parser.parse_args()
options.run(options)
