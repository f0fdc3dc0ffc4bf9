//! Tensors in and out of the file: checked sizes, raw and typed data, little endian.

use super::Precision;
use super::external::is_external;
use super::proto::{TensorProto, tensor_proto::DataType};
use crate::error::{Error, Result};
use crate::factor::StoredKernel;
use bytes::Bytes;
use ndarray::{ArrayD, IxDyn};
use std::ops::Range;

/// Bits of one element, or none for strings and types that this version does not know.
pub(super) fn element_bits(data_type: i32) -> Option<u64> {
    use DataType as T;
    Some(match T::try_from(data_type).ok()? {
        T::Float | T::Int32 | T::Uint32 => 32,
        T::Double | T::Int64 | T::Uint64 | T::Complex64 => 64,
        T::Complex128 => 128,
        T::Float16 | T::Bfloat16 | T::Int16 | T::Uint16 => 16,
        T::Uint8
        | T::Int8
        | T::Bool
        | T::Float8e4m3fn
        | T::Float8e4m3fnuz
        | T::Float8e5m2
        | T::Float8e5m2fnuz
        | T::Float8e8m0 => 8,
        T::Uint4 | T::Int4 | T::Float4e2m1 => 4,
        T::Uint2 | T::Int2 => 2,
        T::Undefined | T::String | T::Float6e2m3 | T::Float6e3m2 => return None,
    })
}

/// The number of elements that the dimensions promise; none when negative or beyond 2⁶³.
pub(super) fn element_count(tensor: &TensorProto) -> Option<u64> {
    tensor
        .dims
        .iter()
        .try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?))
        .filter(|n| i64::try_from(*n).is_ok())
}

/// Checks that a stored tensor holds as many elements as its dimensions say.
///
/// # Errors
/// [`Error::TensorSize`] when it does not, [`Error::ExternalData`] when its data is elsewhere.
pub(super) fn check(tensor: &TensorProto) -> Result<()> {
    let name = || tensor.name().to_owned();
    if is_external(tensor) {
        let reason =
            "there is no folder to look for it in: open the model by its path instead of from memory or a stream";
        return Err(super::external::refused(tensor, reason.into()));
    }
    let wrong = |expected: String, found: String| {
        Err(Error::TensorSize { tensor: name(), dims: tensor.dims.clone(), expected, found })
    };
    let Some(count) = element_count(tensor) else {
        return wrong("an impossible number of".into(), "something else".into());
    };
    let Some(bits) = element_bits(tensor.data_type()) else {
        return Ok(());
    };
    let typed = tensor.float_data.len() + tensor.double_data.len() + tensor.int32_data.len();
    let typed = typed + tensor.int64_data.len() + tensor.uint64_data.len();
    if let Some(raw) = tensor.raw_data.as_ref().filter(|raw| typed == 0 || !raw.is_empty()) {
        if typed > 0 {
            return wrong(count.to_string(), "its data twice, raw and typed".into());
        }
        let expected = u128::from(count) * u128::from(bits);
        if expected.div_ceil(8) != raw.len() as u128 {
            return wrong(count.to_string(), format!("{} bytes", raw.len()));
        }
        return Ok(());
    }
    use DataType as T;
    let found = match T::try_from(tensor.data_type()) {
        Ok(T::Float) => tensor.float_data.len() as u64,
        Ok(T::Complex64) => tensor.float_data.len() as u64 / 2,
        Ok(T::Double) => tensor.double_data.len() as u64,
        Ok(T::Complex128) => tensor.double_data.len() as u64 / 2,
        Ok(T::Int64) => tensor.int64_data.len() as u64,
        Ok(T::Uint64 | T::Uint32) => tensor.uint64_data.len() as u64,
        // Several elements of a small type may share one int32; only whole types are counted.
        Ok(T::Int32 | T::Int16 | T::Uint16 | T::Int8 | T::Uint8 | T::Bool | T::Float16 | T::Bfloat16) => {
            tensor.int32_data.len() as u64
        }
        _ => return Ok(()),
    };
    if found == count { Ok(()) } else { wrong(count.to_string(), found.to_string()) }
}

/// The elements of a float32 or float64 tensor that passed [`check`], as they are, in row-major order.
pub(crate) fn read_numbers(tensor: &TensorProto) -> Option<ArrayD<f64>> {
    if !matches!(Precision::of(tensor.data_type())?, Precision::Single | Precision::Double) {
        return None;
    }
    let shape: Vec<usize> = tensor.dims.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    ArrayD::from_shape_vec(IxDyn(&shape), floats_within(tensor, 0..usize::MAX)).ok()
}

/// The elements of a float32 tensor that passed [`check`], in row-major order.
pub(crate) fn read_floats(tensor: &TensorProto) -> Option<ArrayD<f32>> {
    if tensor.data_type() != DataType::Float as i32 {
        return None;
    }
    let shape: Vec<usize> = tensor.dims.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    ArrayD::from_shape_vec(IxDyn(&shape), floats(tensor).collect()).ok()
}

/// The elements of an array that a model is fed with.
#[cfg(feature = "verify")]
#[derive(Debug, Clone)]
pub(crate) enum Elements {
    Bytes(Vec<u8>),
    Floats(Vec<f32>),
    /// Wider integers: indices or flags rather than pixels.
    Integers(Vec<f32>),
}

/// Dimensions and elements of a tensor of numbers that passed [`check`], in row-major order.
#[cfg(feature = "verify")]
pub(super) fn read_elements(tensor: &TensorProto) -> Option<(Vec<usize>, Elements)> {
    use DataType as T;
    let dims: Vec<usize> = tensor.dims.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    let raw = tensor.raw_data.as_ref().map_or(&[][..], |raw| &raw[..]);
    let typed = &tensor.int32_data;
    let elements = match T::try_from(tensor.data_type()).ok()? {
        T::Float | T::Double | T::Float16 | T::Bfloat16 => Elements::Floats(floats_of(tensor)),
        T::Uint8 => Elements::Bytes(raw.iter().copied().chain(typed.iter().map(|&x| x as u8)).collect()),
        T::Int8 | T::Bool => {
            let stored = raw.iter().map(|&b| i32::from(b.cast_signed()));
            Elements::Integers(stored.chain(typed.iter().copied()).map(|x| x as f32).collect())
        }
        T::Int32 => {
            let stored = raw.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b));
            Elements::Integers(stored.chain(typed.iter().copied()).map(|x| x as f32).collect())
        }
        T::Int64 => Elements::Integers(read_integers(tensor)?.into_iter().map(|x| x as f32).collect()),
        _ => return None,
    };
    Some((dims, elements))
}

/// Whether the elements are floating-point numbers of some type.
pub(super) fn is_number(tensor: &TensorProto) -> bool {
    Precision::of(tensor.data_type()).is_some()
}

/// The elements of a tensor of any floating-point type that passed [`check`], as float32.
pub(super) fn floats_of(tensor: &TensorProto) -> Vec<f32> {
    floats_within(tensor, 0..usize::MAX)
}

/// A type that elements are read in.
pub(super) trait Element: From<f32> + Into<f64> + Copy {
    /// The nearest of its numbers.
    fn nearest(x: f64) -> Self;
}

impl Element for f32 {
    fn nearest(x: f64) -> Self {
        x as Self
    }
}

impl Element for f64 {
    fn nearest(x: f64) -> Self {
        x
    }
}

/// Some of them, by their positions.
pub(super) fn floats_within<T: Element>(tensor: &TensorProto, places: Range<usize>) -> Vec<T> {
    fn within<'t, T>(all: &'t [T], places: &Range<usize>) -> std::slice::Iter<'t, T> {
        all[places.start.min(all.len())..places.end.min(all.len())].iter()
    }
    let raw = tensor.raw_data.as_ref().map_or(&[][..], |raw| &raw[..]);
    // They stand in one of the two.
    let halves = || {
        let stored = within(raw.as_chunks::<2>().0, &places).map(|b| u16::from_le_bytes(*b));
        stored.chain(within(&tensor.int32_data, &places).map(|&x| x as u16))
    };
    match Precision::of(tensor.data_type()) {
        Some(Precision::Single) => {
            let stored = within(raw.as_chunks::<4>().0, &places).map(|b| f32::from_le_bytes(*b));
            stored.chain(within(&tensor.float_data, &places).copied()).map(T::from).collect()
        }
        Some(Precision::Half) => halves().map(|bits| T::from(half::f16::from_bits(bits).to_f32())).collect(),
        Some(Precision::Brain) => halves().map(|bits| T::from(half::bf16::from_bits(bits).to_f32())).collect(),
        Some(Precision::Double) => {
            let stored = within(raw.as_chunks::<8>().0, &places).map(|b| f64::from_le_bytes(*b));
            stored.chain(within(&tensor.double_data, &places).copied()).map(T::nearest).collect()
        }
        None => Vec::new(),
    }
}

/// A float32 initializer with raw data.
pub(crate) fn float_initializer(name: String, dims: &[usize], data: impl Iterator<Item = f32>) -> TensorProto {
    initializer(name, dims, data, Precision::Single)
}

/// An initializer of a floating-point type, with raw data.
pub(crate) fn initializer(
    name: String,
    dims: &[usize],
    data: impl Iterator<Item: Into<f64>>,
    precision: Precision,
) -> TensorProto {
    let mut raw = Vec::with_capacity(4 * dims.iter().product::<usize>());
    data.for_each(|x| precision.store(x.into(), &mut raw));
    TensorProto {
        name: Some(name),
        dims: dims.iter().map(|&d| d as i64).collect(),
        data_type: Some(precision.data_type() as i32),
        raw_data: Some(Bytes::from(raw)),
        ..TensorProto::default()
    }
}

/// An initializer of a kernel, which shares the kernel's memory if elements stand there as they are stored.
pub(crate) fn kernel_initializer(
    name: String,
    dims: &[usize],
    kernel: StoredKernel,
    precision: Precision,
) -> TensorProto {
    let as_stored = precision.width() == kernel.width() && precision.narrow() == kernel.narrow();
    if cfg!(target_endian = "big") || !as_stored || kernel.bytes().is_none() {
        return initializer(name, dims, kernel.to_f64().iter().copied(), precision);
    }
    struct Elements(StoredKernel);
    impl AsRef<[u8]> for Elements {
        fn as_ref(&self) -> &[u8] {
            self.0.bytes().unwrap_or_default()
        }
    }
    TensorProto {
        name: Some(name),
        dims: dims.iter().map(|&d| d as i64).collect(),
        data_type: Some(precision.data_type() as i32),
        raw_data: Some(Bytes::from_owner(Elements(kernel))),
        ..TensorProto::default()
    }
}

/// An INT8 initializer of whole numbers.
pub(crate) fn int8_initializer(name: String, dims: &[usize], data: impl Iterator<Item = f32>) -> TensorProto {
    let raw: Vec<u8> = data.map(|x| (x as i8).cast_unsigned()).collect();
    TensorProto {
        name: Some(name),
        dims: dims.iter().map(|&d| d as i64).collect(),
        data_type: Some(DataType::Int8 as i32),
        raw_data: Some(Bytes::from(raw)),
        ..TensorProto::default()
    }
}

/// The elements of a tensor of the types that whole numbers are quantized to: INT8 and UINT8, and INT32 for biases.
pub(super) fn integers_of(tensor: &TensorProto) -> Option<Vec<i32>> {
    let raw = tensor.raw_data.as_ref().map_or(&[][..], |raw| &raw[..]);
    let typed = tensor.int32_data.iter().copied();
    Some(match DataType::try_from(tensor.data_type()).ok()? {
        DataType::Int8 => raw.iter().map(|&b| i32::from(b.cast_signed())).chain(typed).collect(),
        DataType::Uint8 => raw.iter().map(|&b| i32::from(b)).chain(typed).collect(),
        DataType::Int32 => raw.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).chain(typed).collect(),
        _ => return None,
    })
}

/// The small integers of an int64 tensor, for shapes, pads and scales.
pub(crate) fn read_integers(tensor: &TensorProto) -> Option<Vec<i64>> {
    if tensor.data_type() != DataType::Int64 as i32 {
        return None;
    }
    Some(match &tensor.raw_data {
        Some(raw) => raw.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        None => tensor.int64_data.clone(),
    })
}

/// Whether no element of a tensor of a floating-point type is NaN or infinite.
pub(super) fn is_finite(tensor: &TensorProto) -> bool {
    match Precision::of(tensor.data_type()) {
        Some(Precision::Single) => floats(tensor).all(f32::is_finite),
        _ => floats_of(tensor).into_iter().all(f32::is_finite),
    }
}

/// The largest element of a tensor of a floating-point type, without its sign; none if one is no number.
pub(super) fn largest(tensor: &TensorProto) -> Option<f64> {
    let most = |largest: f64, x: f64| if x.is_nan() { None } else { Some(largest.max(x.abs())) };
    match Precision::of(tensor.data_type()) {
        Some(Precision::Single) => floats(tensor).map(f64::from).try_fold(0.0, most),
        Some(Precision::Double) => floats_within::<f64>(tensor, 0..usize::MAX).into_iter().try_fold(0.0, most),
        _ => floats_of(tensor).into_iter().map(f64::from).try_fold(0.0, most),
    }
}

/// The elements of a tensor that is float32, wherever they stand.
fn floats(tensor: &TensorProto) -> impl Iterator<Item = f32> {
    let raw = tensor.raw_data.as_ref().map_or(&[][..], |raw| raw.as_chunks::<4>().0);
    raw.iter().map(|b| f32::from_le_bytes(*b)).chain(tensor.float_data.iter().copied())
}
