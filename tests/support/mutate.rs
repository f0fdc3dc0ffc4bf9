//! Damage to sound models, chosen number by number: by a seed in tests, by the fuzzer in tools/fuzz.

use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, StringStringEntryProto,
    TensorProto, attribute_proto::AttributeType, tensor_proto::DataLocation,
};
use super::{ConvSpec, ModelBuilder, Storage, int, value};
use bytes::Bytes;

/// Gives a number below its argument, which is at least one.
pub type Pick<'p> = &'p mut dyn FnMut(usize) -> usize;

/// Numbers at the edges of what is checked.
const NUMBERS: [i64; 24] = [
    -1,
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    255,
    4096,
    4097,
    1 << 20,
    1 << 24,
    (1 << 24) + 1,
    i32::MAX as i64,
    1 << 31,
    1 << 32,
    1 << 40,
    1 << 52,
    1 << 62,
    i64::MAX,
    i64::MIN + 1,
    i64::MIN,
];

const NAMES: [&str; 9] = ["", "image", "scores", "jmd_a", "x\0y", "a/b:c", "Übergröße", "<b>&\"'</b>", "conv_1.weight"];

const OPERATORS: [&str; 46] = [
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "LpPool",
    "GlobalAveragePool",
    "BatchNormalization",
    "Identity",
    "Constant",
    "ConstantOfShape",
    "Expand",
    "Tile",
    "Range",
    "Pad",
    "Crop",
    "Upsample",
    "Resize",
    "Concat",
    "Split",
    "Slice",
    "Reshape",
    "Shape",
    "Size",
    "Gather",
    "Flatten",
    "Gemm",
    "MatMul",
    "Add",
    "Mul",
    "Sub",
    "Div",
    "Relu",
    "Clip",
    "If",
    "Loop",
    "Scan",
    "Dropout",
    "DepthToSpace",
    "SpaceToDepth",
    "QLinearConv",
    "DequantizeLinear",
    "QuantizeLinear",
    "Cast",
    "Transpose",
    "Einsum",
    "LayerNormalization",
];

const ATTRIBUTES: [&str; 16] = [
    "kernel_shape",
    "strides",
    "pads",
    "dilations",
    "group",
    "auto_pad",
    "value",
    "epsilon",
    "axis",
    "border",
    "scales",
    "output_padding",
    "output_shape",
    "ceil_mode",
    "transB",
    "then_branch",
];

/// A small residual network, its form and its operators chosen.
pub fn small(pick: Pick<'_>) -> ModelProto {
    let sides = [0, 5, 8];
    let side = sides[pick(sides.len())];
    let mut b = ModelBuilder::new(&[pick(2) as i64, 2, side, side], pick(4) as u64);
    b.ir_version = [3, 4, 8, 13][pick(4)];
    b.opset = [1, 7, 9, 13, 17, 23][pick(6)];
    b.storage = [Storage::Raw, Storage::Typed, Storage::ConstantNode][pick(3)];
    let channels = 2 + pick(4);
    let norm = pick(2) == 1;
    let mut spec = ConvSpec::new(channels, [1, 2, 3][pick(3)]);
    spec.bias = pick(2) == 1;
    spec.auto_pad = [None, Some("SAME_UPPER"), Some("SAME_LOWER"), Some("VALID")][pick(4)];
    let mut x = b.conv("image", &ConvSpec::new(channels, 3));
    for _ in 0..1 + pick(4) {
        let mut y = operator(&mut b, &x, channels, &spec, pick);
        if norm {
            y = b.batch_norm(&y);
        }
        y = b.relu(&y);
        y = b.conv(&y, &ConvSpec::new(channels, 3));
        if norm {
            y = b.batch_norm(&y);
        }
        x = b.add(&y, &x);
    }
    if pick(2) == 1 {
        b.classifier(&x, 3);
        return b.build_proto(&["scores"]);
    }
    b.build_proto(&[&x])
}

/// A convolution from `channels` to as many: in groups, transposed, with a quantized kernel, or none of these.
fn operator(b: &mut ModelBuilder, input: &str, channels: usize, spec: &ConvSpec, pick: Pick<'_>) -> String {
    match pick(5) {
        0 if channels.is_multiple_of(2) => b.grouped_conv(input, 2, spec),
        1 => {
            let output = b.conv(input, spec);
            if let Some(node) = b.graph.node.last_mut() {
                node.op_type = Some("ConvTranspose".into());
            }
            output
        }
        2 => {
            let output = b.conv(input, spec);
            quantize(b, &output, channels, pick);
            output
        }
        _ => b.conv(input, spec),
    }
}

/// Puts `DequantizeLinear` before the kernel of the last convolution, if that is an initializer with raw data.
fn quantize(b: &mut ModelBuilder, output: &str, channels: usize, pick: Pick<'_>) {
    let weight = format!("{output}.weight");
    let Some(tensor) = b.graph.initializer.iter_mut().find(|t| t.name() == weight && t.raw_data.is_some()) else {
        return;
    };
    // The most significant bytes are as good as any.
    let bytes: Vec<u8> = tensor.raw_data.take().unwrap_or_default().iter().skip(3).step_by(4).copied().collect();
    (tensor.raw_data, tensor.data_type) = (Some(bytes.into()), Some([2, 3][pick(2)]));
    let per_channel = pick(2) == 1;
    let dims: &[usize] = if per_channel { &[channels] } else { &[] };
    let scale = b.tensor(&format!("{weight}.scale"), dims, 0.01);
    let attributes = if per_channel { vec![int("axis", [0, 0, 1, -4][pick(4)])] } else { vec![] };
    let wide = b.node("DequantizeLinear", &[&weight, &scale], &format!("{weight}.wide"), attributes);
    let last = b.graph.node.len() - 1;
    b.graph.node[last - 1].input[1] = wide;
    b.graph.node.swap(last - 1, last);
}

fn number(pick: Pick<'_>) -> i64 {
    NUMBERS[pick(NUMBERS.len())]
}

fn at<'v, T>(all: &'v mut [T], pick: Pick<'_>) -> Option<&'v mut T> {
    if all.is_empty() { None } else { all.get_mut(pick(all.len())) }
}

/// A name that the graph has, or another.
fn name(graph: &GraphProto, pick: Pick<'_>) -> String {
    let outputs = graph.node.iter().flat_map(|n| n.input.iter().chain(&n.output)).cloned();
    let all: Vec<String> = outputs.chain(NAMES.iter().map(|&n| n.to_owned())).collect();
    all[pick(all.len())].clone()
}

/// An attribute with a value of some kind.
fn attribute(graph: &GraphProto, pick: Pick<'_>) -> AttributeProto {
    let name = ATTRIBUTES[pick(ATTRIBUTES.len())].to_owned();
    let mut made = AttributeProto { name: Some(name), ..AttributeProto::default() };
    match pick(6) {
        0 => (made.i, made.r#type) = (Some(number(pick)), Some(AttributeType::Int as i32)),
        1 => (made.f, made.r#type) = (Some(number(pick) as f32), Some(AttributeType::Float as i32)),
        2 => {
            made.ints = (0..pick(9)).map(|_| number(pick)).collect();
            made.r#type = Some(AttributeType::Ints as i32);
        }
        3 => made.s = Some(NAMES[pick(NAMES.len())].as_bytes().to_vec()),
        4 => {
            let dims = (0..pick(5)).map(|_| number(pick)).collect();
            made.t = Some(TensorProto { dims, data_type: Some(pick(24) as i32), ..TensorProto::default() });
        }
        _ => made.g = Some(graph.clone()),
    }
    made
}

/// Damages a model once. Graphs of more than some hundred nodes no longer grow.
pub fn mutate(model: &mut ModelProto, pick: Pick<'_>) {
    match pick(20) {
        0 => model.ir_version = [None, Some(1), Some(3), Some(4), Some(i64::MIN), Some(i64::MAX)][pick(6)],
        1 => {
            model.opset_import.iter_mut().for_each(|o| o.version = Some(number(pick)));
            if pick(4) == 0 {
                model.opset_import.clear();
            }
        }
        2 => {
            let property = |key: &str| StringStringEntryProto { key: Some(key.into()), value: Some("0.1.0".into()) };
            model.metadata_props.push(property(["onnx_jmd.version", "x", ""][pick(3)]));
        }
        3 => {
            let node = model.graph.as_ref().and_then(|g| g.node.first().cloned()).into_iter().collect();
            model.functions.push(FunctionProto { name: Some("Conv".into()), node, ..FunctionProto::default() });
        }
        4 | 5 => wrap(model, pick),
        6 => mutate_function(model, pick),
        _ => {
            if let Some(graph) = &mut model.graph {
                mutate_graph(graph, pick);
            }
        }
    }
}

/// Makes a node, or several that follow each other, a local function.
fn wrap(model: &mut ModelProto, pick: Pick<'_>) {
    let number = model.functions.len();
    let Some(graph) = model.graph.as_mut().filter(|graph| !graph.node.is_empty()) else { return };
    let start = pick(graph.node.len());
    let end = (start + 1 + pick(4)).min(graph.node.len());
    let body: Vec<NodeProto> = graph.node.drain(start..end).collect();
    let output: Vec<String> = body.iter().flat_map(|n| &n.output).filter(|o| !o.is_empty()).cloned().collect();
    let mut input: Vec<String> =
        body.iter().flat_map(|n| &n.input).filter(|i| !i.is_empty() && !output.contains(i)).cloned().collect();
    input.sort();
    input.dedup();
    let function = FunctionProto {
        name: Some(format!("F{number}")),
        domain: Some("local".into()),
        input: input.clone(),
        output: output.clone(),
        node: body,
        opset_import: model.opset_import.clone(),
        ..FunctionProto::default()
    };
    graph.node.insert(start, call(&function, input, output));
    model.functions.push(function);
}

fn call(function: &FunctionProto, input: Vec<String>, output: Vec<String>) -> NodeProto {
    NodeProto { op_type: function.name.clone(), domain: function.domain.clone(), input, output, ..NodeProto::default() }
}

/// Damages a function, or has it call another.
fn mutate_function(model: &mut ModelProto, pick: Pick<'_>) {
    let whole = model.graph.clone().unwrap_or_default();
    let others = model.functions.clone();
    let Some(function) = at(&mut model.functions, pick) else { return };
    match pick(9) {
        0 => drop(function.input.pop()),
        1 => drop(function.output.pop()),
        2 => function.input.push(name(&whole, pick)),
        3 => function.output.extend(function.input.first().cloned()),
        4 => function.opset_import.iter_mut().for_each(|o| o.version = Some(number(pick))),
        5 if function.node.len() < 100 => {
            let other = &others[pick(others.len())];
            let input = (0..other.input.len()).map(|_| name(&whole, pick)).collect();
            function.node.push(call(other, input, vec![name(&whole, pick)]));
        }
        6 => {
            let given = attribute(&whole, pick);
            function.attribute.extend(given.name.clone());
            function.attribute_proto.push(given);
        }
        7 => {
            let (wanted, made) = (ATTRIBUTES[pick(ATTRIBUTES.len())], attribute(&GraphProto::default(), pick));
            if let Some(node) = at(&mut function.node, pick) {
                node.attribute.push(AttributeProto { ref_attr_name: Some(wanted.into()), ..made });
            }
        }
        _ => {
            let (found, made) = (name(&whole, pick), attribute(&whole, pick));
            if let Some(node) = at(&mut function.node, pick) {
                mutate_node(node, found, made, pick);
            }
        }
    }
}

fn mutate_graph(graph: &mut GraphProto, pick: Pick<'_>) {
    let many = graph.node.len() > 300;
    match pick(8) {
        0 => {
            let Some(tensor) = at(&mut graph.initializer, pick) else { return };
            mutate_tensor(tensor, pick);
        }
        1 | 2 => {
            let found = name(graph, pick);
            let whole = if many { GraphProto::default() } else { graph.clone() };
            let made = attribute(&whole, pick);
            let Some(node) = at(&mut graph.node, pick) else { return };
            mutate_node(node, found, made, pick);
        }
        3 if !graph.node.is_empty() => {
            let index = pick(graph.node.len());
            match pick(4) {
                0 => drop(graph.node.remove(index)),
                1 if !many => {
                    let mut copy = graph.node[index].clone();
                    copy.output.iter_mut().for_each(|o| o.push('2'));
                    graph.node.insert(pick(index + 1), copy);
                }
                2 => {
                    let other = pick(graph.node.len());
                    graph.node.swap(index, other);
                }
                _ => {
                    // What a node writes goes through another first.
                    let (node, made) = (&mut graph.node[index], format!("through_{index}"));
                    let Some(output) = node.output.first_mut() else { return };
                    let op_type = Some(OPERATORS[pick(OPERATORS.len())].to_owned());
                    let through = NodeProto {
                        op_type,
                        input: vec![made.clone()],
                        output: vec![output.clone()],
                        ..NodeProto::default()
                    };
                    *output = made;
                    graph.node.push(through);
                }
            }
        }
        4 => {
            let (named, dims) = (name(graph, pick), (0..pick(6)).map(|_| number(pick)).collect::<Vec<_>>());
            match pick(4) {
                0 => graph.input.push(value(&named, &dims)),
                1 => graph.output.push(value(&named, &dims)),
                2 => graph.value_info.push(value(&named, &dims)),
                _ => graph.input = vec![value("image", &dims)],
            }
        }
        5 => {
            let Some(values) = at(&mut graph.initializer, pick).cloned() else { return };
            graph.sparse_initializer.push(SparseTensorProto { values: Some(values), ..SparseTensorProto::default() });
        }
        6 if !many => {
            // Graphs within graphs.
            let mut inner = GraphProto { output: graph.output.clone(), ..GraphProto::default() };
            for _ in 0..pick(40) {
                let nested = AttributeProto { g: Some(inner), ..AttributeProto::default() };
                let input = vec![name(graph, pick)];
                let node =
                    NodeProto { op_type: Some("If".into()), input, attribute: vec![nested], ..NodeProto::default() };
                inner = GraphProto { node: vec![node], ..GraphProto::default() };
            }
            let Some(node) = at(&mut graph.node, pick) else { return };
            node.attribute.push(AttributeProto { g: Some(inner), ..AttributeProto::default() });
        }
        _ => {
            // A weight behind an Identity, or read once more.
            let Some(weight) = at(&mut graph.initializer, pick).map(|t| t.name().to_owned()) else { return };
            let output = if pick(2) == 0 { format!("{weight}_again") } else { name(graph, pick) };
            graph.node.push(NodeProto {
                op_type: Some("Identity".into()),
                input: vec![weight],
                output: vec![output.clone()],
                ..NodeProto::default()
            });
            if let Some(input) = at(&mut graph.node, pick).and_then(|n| at(&mut n.input, pick)) {
                *input = output;
            }
        }
    }
}

fn mutate_node(node: &mut NodeProto, found: String, made: AttributeProto, pick: Pick<'_>) {
    match pick(11) {
        0 => node.op_type = Some(OPERATORS[pick(OPERATORS.len())].to_owned()),
        1 => node.domain = Some(["ai.onnx", "com.microsoft", ""][pick(3)].to_owned()),
        2 => node.name = Some(found),
        3 => node.input.push(found),
        4 => node.output.push(found),
        5 => drop(node.input.pop()),
        6 => drop(node.output.pop()),
        7 => {
            if let Some(input) = at(&mut node.input, pick) {
                *input = found;
            }
        }
        8 => node.attribute.push(made),
        9 => {
            if let Some(attribute) = at(&mut node.attribute, pick) {
                *attribute = AttributeProto { name: attribute.name.clone(), ..made };
            }
        }
        _ => {
            let Some(attribute) = at(&mut node.attribute, pick) else { return };
            if let Some(n) = at(&mut attribute.ints, pick) {
                *n = number(pick);
            }
            attribute.i = attribute.i.map(|_| number(pick));
            if let Some(tensor) = &mut attribute.t {
                mutate_tensor(tensor, pick);
            }
        }
    }
}

fn mutate_tensor(tensor: &mut TensorProto, pick: Pick<'_>) {
    match pick(9) {
        0 => {
            if let Some(d) = at(&mut tensor.dims, pick) {
                *d = number(pick);
            }
        }
        1 => tensor.dims.push(number(pick)),
        2 => {
            // The same elements in other dimensions.
            let all = tensor.dims.iter().try_fold(1i64, |n, d| n.checked_mul(*d)).unwrap_or(1);
            tensor.dims = [vec![all], vec![all, 1, 1, 1], vec![1, all, 1, 1], vec![1, 1, 1, all], vec![0, 3, 1, 1]]
                [pick(5)]
            .clone();
        }
        3 => tensor.data_type = Some(pick(26) as i32),
        4 => {
            let raw = tensor.raw_data.take().unwrap_or_default();
            let to = pick(raw.len() + 1);
            tensor.raw_data = Some(raw.slice(..to));
        }
        5 => {
            let special = [f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45, 0.0, -1e30][pick(7)];
            let count = tensor.raw_data.as_ref().map_or(0, |raw| raw.len() / 4);
            let all = pick(2) == 0;
            let mut raw = tensor.raw_data.take().unwrap_or_default().to_vec();
            let one = if count > 0 { pick(count) } else { 0 };
            for (index, bytes) in raw.chunks_exact_mut(4).enumerate() {
                if all || index == one {
                    bytes.copy_from_slice(&special.to_le_bytes());
                }
            }
            tensor.raw_data = Some(Bytes::from(raw));
        }
        6 => {
            let raw = tensor.raw_data.take().unwrap_or_default();
            tensor.float_data = raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        }
        7 => {
            let entry =
                |key: &str, value: &str| StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
            tensor.external_data =
                vec![entry("location", NAMES[pick(NAMES.len())]), entry("offset", &number(pick).to_string())];
            tensor.data_location = Some(DataLocation::External as i32);
        }
        _ => tensor.name = Some(NAMES[pick(NAMES.len())].to_owned()),
    }
}
