//! What a convolution reads and writes as images `[channels, height, width]`, whatever operator computes it.

use crate::error::{Error, Result};
use crate::factor::Geometry;
use crate::onnx::{Conv, Window};
use ndarray::{Array3, Array4, ArrayD, ArrayView3, ArrayView4, ArrayViewD, Axis, CowArray, Ix3, s};

/// An image.
pub(super) type Image<'v> = CowArray<'v, f32, Ix3>;

/// How the kernel slides over [`read`]'s image of a value.
pub(super) fn geometry(conv: &Conv, value: &ArrayD<f32>) -> Geometry {
    let [_, _, kh, kw] = conv.shape;
    let plain = Geometry { kernel: [kh, kw], strides: [1; 2], dilations: [1; 2], pads: [0; 4] };
    let Some(window) = conv.kind.window() else { return plain };
    let Cube { strides, dilations, before, after, .. } = Cube::of(window, value);
    let [_, y, x] = dilations;
    match (conv.kind.is_transposed(), window.kernel.len()) {
        // The planes' kernels stand side by side, the first axis is left.
        (true, 3) => Geometry { strides: [1, kw], dilations: [dilations[0], 1], ..plain },
        (true, _) => Geometry { dilations: [y, x], ..plain },
        (false, 3) => Geometry {
            strides: [strides[0], kw],
            dilations: [dilations[0], 1],
            pads: [before[0], 0, after[0], 0],
            ..plain
        },
        (false, _) => Geometry {
            strides: [strides[1], strides[2]],
            dilations: [y, x],
            pads: [before[1], before[2], after[1], after[2]],
            ..plain
        },
    }
}

/// What a convolution reads.
///
/// # Errors
/// [`Error::Options`] if the value is not one image.
pub(super) fn read<'v>(conv: &Conv, value: &'v ArrayD<f32>) -> Result<Image<'v>> {
    let Some(window) = conv.kind.window() else { return rows(value, conv.shape[1], &conv.input) };
    let volume = volume(value, window.kernel.len(), &conv.input)?;
    if window.kernel.len() < 3 && !conv.kind.is_transposed() {
        return Ok(volume.index_axis_move(Axis(1), 0).into());
    }
    let mut cube = Cube::of(window, value);
    let spread = if conv.kind.is_transposed() { Some(cube.spread(volume)) } else { None };
    if spread.is_some() {
        (cube.strides, cube.before, cube.after) = ([1; 3], [0; 3], [0; 3]);
    }
    let volume = spread.as_ref().map_or(volume, |s| s.view());
    if window.kernel.len() < 3 {
        return Ok(volume.index_axis(Axis(1), 0).to_owned().into());
    }
    Ok(cube.planes(volume).into())
}

/// What one group of its channels reads of an image.
pub(super) fn part<'v>(conv: &Conv, image: &'v Image<'_>, part: usize) -> ArrayView3<'v, f32> {
    let channels = image.dim().0 / conv.channel_groups();
    image.slice(s![part * channels..(part + 1) * channels, .., ..])
}

/// What it writes, or what is added to that.
///
/// # Errors
/// [`Error::Options`] if the value is not one image.
pub(super) fn written<'v>(conv: &Conv, value: &'v ArrayD<f32>) -> Result<Image<'v>> {
    let Some(window) = conv.kind.window() else { return rows(value, conv.shape[0], &conv.output) };
    let volume = volume(value, window.kernel.len(), &conv.output)?;
    if window.kernel.len() < 3 {
        return Ok(volume.index_axis_move(Axis(1), 0).into());
    }
    let (channels, depth, height, width) = volume.dim();
    let flat = volume.to_shape((channels, depth, height * width)).map(|v| v.into_owned());
    flat.map(Image::from).map_err(|_| odd(&conv.output, value.shape()))
}

/// Pixels of what a convolution writes.
pub(super) fn pixels(conv: &Conv, written: &ArrayD<f32>) -> usize {
    written.len() / conv.shape[0].max(1)
}

fn odd(name: &str, shape: &[usize]) -> Error {
    Error::Options(format!(
        "value '{name}' is {shape:?}, not one image of channels: give the model's input with a batch of one (--input-shape), or let the plain \
         weights decide (--calib none)"
    ))
}

/// `[…, channels]` as an image one high.
fn rows<'v>(value: &'v ArrayD<f32>, channels: usize, name: &str) -> Result<Image<'v>> {
    let fits = value.shape().last() == Some(&channels) && channels > 0;
    let flat = value.to_shape((value.len() / channels.max(1), channels)).ok().filter(|_| fits);
    let flat = flat.ok_or_else(|| odd(name, value.shape()))?;
    Ok(flat.reversed_axes().insert_axis(Axis(1)))
}

/// `[1, channels, …]` with three spatial axes, those that there are the last.
fn volume<'v>(value: &'v ArrayD<f32>, axes: usize, name: &str) -> Result<ArrayView4<'v, f32>> {
    let fits = value.ndim() == axes + 2 && value.len_of(Axis(0)) == 1;
    let mut volume: ArrayViewD<'v, f32> = value.view();
    if fits {
        volume = volume.index_axis_move(Axis(0), 0);
        (axes..3).for_each(|_| volume.insert_axis_inplace(Axis(1)));
    }
    volume.into_dimensionality().ok().filter(|_| fits).ok_or_else(|| odd(name, value.shape()))
}

/// A window over three axes, of which the first may be missing.
struct Cube {
    kernel: [usize; 3],
    strides: [usize; 3],
    dilations: [usize; 3],
    before: [usize; 3],
    after: [usize; 3],
    output_padding: [usize; 3],
}

impl Cube {
    /// The window with the pads that it has over a value.
    fn of(window: &Window, value: &ArrayD<f32>) -> Self {
        let axes = window.kernel.len();
        let sizes: Vec<Option<usize>> = value.shape().iter().skip(2).map(|&size| Some(size)).collect();
        let pads = window.pads(&sizes).unwrap_or_default();
        let last = |values: &[usize], otherwise: usize| {
            let mut cube = [otherwise; 3];
            cube.iter_mut().rev().zip(values.iter().rev()).for_each(|(to, from)| *to = *from);
            cube
        };
        let (before, after) = pads.split_at(axes.min(pads.len()));
        Self {
            kernel: last(&window.kernel, 1),
            strides: last(&window.strides, 1),
            dilations: last(&window.dilations, 1),
            before: last(before, 0),
            after: last(after, 0),
            output_padding: last(&window.output_padding, 0),
        }
    }

    fn reach(&self, axis: usize) -> usize {
        self.dilations[axis] * (self.kernel[axis] - 1) + 1
    }

    /// The image over which a transposed convolution is one at stride one: `stride − 1` zeros between the pixels and as many
    /// around them as the kernel, less the pads, reaches beyond.
    fn spread(&self, from: ArrayView4<'_, f32>) -> Array4<f32> {
        let dim = |axis: usize| {
            let reach = self.reach(axis);
            let all =
                (from.shape()[axis + 1].max(1) - 1) * self.strides[axis] + 2 * reach - 1 + self.output_padding[axis];
            all.saturating_sub(self.before[axis] + self.after[axis])
        };
        let mut spread = Array4::zeros((from.dim().0, dim(0), dim(1), dim(2)));
        let place = |axis: usize, at: usize| {
            (at * self.strides[axis] + self.reach(axis) - 1).checked_sub(self.before[axis]).filter(|&p| p < dim(axis))
        };
        let (_, depth, height, width) = from.dim();
        for (z, y, x) in ndarray::indices((depth, height, width)) {
            if let (Some(a), Some(b), Some(c)) = (place(0, z), place(1, y), place(2, x)) {
                spread.slice_mut(s![.., a, b, c]).assign(&from.slice(s![.., z, y, x]));
            }
        }
        spread
    }

    /// The last two axes as one: for each place of the window over them the pixels under it, side by side.
    fn planes(&self, from: ArrayView4<'_, f32>) -> Array3<f32> {
        let (channels, depth, height, width) = from.dim();
        let places = |axis: usize, size: usize| {
            let room = (size + self.before[axis] + self.after[axis]).checked_sub(self.reach(axis));
            room.map_or(0, |room| room / self.strides[axis] + 1)
        };
        let source = |axis: usize, place: usize, k: usize, size: usize| {
            (place * self.strides[axis] + k * self.dilations[axis]).checked_sub(self.before[axis]).filter(|&p| p < size)
        };
        let (rows, columns) = (places(1, height), places(2, width));
        let [_, kh, kw] = self.kernel;
        let mut planes = Array3::zeros((channels, depth, rows * columns * kh * kw));
        for (at, (y, x, ky, kx)) in ndarray::indices((rows, columns, kh, kw)).into_iter().enumerate() {
            if let (Some(row), Some(column)) = (source(1, y, ky, height), source(2, x, kx, width)) {
                planes.slice_mut(s![.., .., at]).assign(&from.slice(s![.., .., row, column]));
            }
        }
        planes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factor::respond_to_rows;
    use crate::group::{GroupOptions, find_groups};
    use crate::onnx::proto::{
        AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto,
        ValueInfoProto, attribute_proto::AttributeType, tensor_shape_proto, type_proto,
    };
    use crate::onnx::{Model, float_initializer};
    use crate::runtime::{Runner, inputs};
    use ndarray::IxDyn;

    fn value(name: &str, dims: &[usize]) -> ValueInfoProto {
        use tensor_shape_proto::{Dimension, dimension::Value};
        let dim = |&d: &usize| Dimension { value: Some(Value::DimValue(d as i64)), ..Dimension::default() };
        let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
        let value = type_proto::Value::TensorType(type_proto::Tensor { elem_type: Some(1), shape });
        let r#type = Some(TypeProto { value: Some(value), ..TypeProto::default() });
        ValueInfoProto { name: Some(name.into()), r#type, ..ValueInfoProto::default() }
    }

    fn check(operator: &str, dims: &[usize], weight: &[usize], attributes: &[(&str, &[i64])]) {
        let attribute = |(name, values): &(&str, &[i64])| {
            let plain = AttributeProto { name: Some((*name).into()), ..AttributeProto::default() };
            let of_type = |kind: AttributeType| Some(kind as i32);
            match *name {
                "group" => AttributeProto { r#type: of_type(AttributeType::Int), i: Some(values[0]), ..plain },
                padding if padding.starts_with("SAME") => AttributeProto {
                    name: Some("auto_pad".into()),
                    r#type: of_type(AttributeType::String),
                    s: Some(padding.into()),
                    ..plain
                },
                _ => AttributeProto { r#type: of_type(AttributeType::Ints), ints: values.to_vec(), ..plain },
            }
        };
        let wave = |at: usize| ((at * 37 + 11) % 23) as f32 / 11.0 - 1.0;
        let node = NodeProto {
            op_type: Some(operator.into()),
            input: vec!["x".into(), "w".into()],
            output: vec!["y".into()],
            attribute: attributes.iter().map(attribute).collect(),
            ..NodeProto::default()
        };
        let graph = GraphProto {
            node: vec![node],
            initializer: vec![float_initializer("w".into(), weight, (0..weight.iter().product()).map(wave))],
            input: vec![value("x", dims)],
            output: vec![ValueInfoProto { name: Some("y".into()), ..ValueInfoProto::default() }],
            ..GraphProto::default()
        };
        let model = Model::from_proto(ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() }],
            graph: Some(graph),
            ..ModelProto::default()
        });
        let conv = &find_groups(&model, &GroupOptions::default()).unwrap().convs[0];
        let count = dims.iter().product();
        let x = ArrayD::from_shape_vec(IxDyn(dims), (0..count).map(|at| wave(at * at + 3)).collect()).unwrap();
        let y = Runner::load(&model, &inputs(&model, &[]).unwrap(), "it").unwrap().run(&[&x]).unwrap().remove(0);
        let image = read(conv, &x).unwrap();
        let geometry = geometry(conv, &x);
        let [height, width] = geometry.output([image.dim().1, image.dim().2]);
        assert_eq!(height * width, pixels(conv, &y), "{operator} {weight:?}");
        let wanted = written(conv, &y).unwrap();
        assert_eq!(wanted.dim(), (conv.shape[0], height, width));
        let parts = (0..conv.channel_groups()).map(|at| {
            let rows = geometry.rows(part(conv, &image, at), &(0..height * width).collect::<Vec<_>>());
            respond_to_rows(&conv.part_kernel(at), rows.view())
        });
        let parts: Vec<_> = parts.collect();
        let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
        let found = ndarray::concatenate(Axis(1), &views).unwrap();
        for ((pixel, channel), found) in found.indexed_iter() {
            let wanted = wanted[[channel, pixel / width, pixel % width]];
            assert!((found - wanted).abs() < 1e-4, "{operator} {weight:?} at {pixel}, {channel}: {found} {wanted}");
        }
    }

    #[test]
    fn rows_times_the_kernel_are_what_the_operator_gives() {
        check("Conv", &[1, 2, 6, 5], &[3, 2, 3, 2], &[("strides", &[2, 1]), ("pads", &[1, 0, 2, 1])]);
        check("Conv", &[1, 2, 8, 7], &[3, 2, 3, 2], &[("strides", &[2, 3]), ("SAME_LOWER", &[])]);
        check("Conv", &[1, 2, 9], &[3, 2, 4], &[("strides", &[2]), ("SAME_UPPER", &[])]);
        check("Conv", &[1, 2, 11], &[3, 2, 3], &[("strides", &[2]), ("dilations", &[2]), ("pads", &[3, 1])]);
        let cube: &[(&str, &[i64])] =
            &[("strides", &[2, 1, 2]), ("dilations", &[1, 2, 1]), ("pads", &[1, 0, 1, 0, 2, 1])];
        check("Conv", &[1, 2, 5, 6, 7], &[3, 2, 2, 3, 2], cube);
        check("Conv", &[1, 6, 7, 5], &[9, 2, 3, 2], &[("strides", &[2, 1]), ("pads", &[1, 0, 2, 1]), ("group", &[3])]);
        check("Conv", &[1, 4, 11], &[6, 2, 3], &[("dilations", &[2]), ("pads", &[3, 1]), ("group", &[2])]);
        let grouped = [cube, &[("group", &[2])]].concat();
        check("Conv", &[1, 4, 5, 6, 7], &[6, 2, 2, 3, 2], &grouped);
        check(
            "ConvTranspose",
            &[1, 2, 5],
            &[2, 3, 4],
            &[("strides", &[3]), ("pads", &[1, 2]), ("output_padding", &[2])],
        );
        let plane: &[(&str, &[i64])] = &[("strides", &[2, 3]), ("dilations", &[2, 1]), ("pads", &[2, 0, 1, 1])];
        check("ConvTranspose", &[1, 2, 4, 3], &[2, 3, 2, 3], plane);
        let cube: &[(&str, &[i64])] =
            &[("strides", &[1, 2, 3]), ("pads", &[0, 1, 1, 1, 0, 2]), ("output_padding", &[0, 1, 2])];
        check("ConvTranspose", &[1, 2, 3, 2, 3], &[2, 3, 2, 3, 4], cube);
        check("Gemm", &[1, 7], &[7, 4], &[]);
        check("MatMul", &[2, 3, 7], &[7, 4], &[]);
    }
}
