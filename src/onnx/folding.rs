//! Constants behind operators that only rearrange or convert them, as exporters and converters leave them.

use super::attributes;
use super::graph::{Graph, is_standard};
use super::precision::Precision;
use super::proto::{NodeProto, TensorProto, tensor_proto::DataType};
use super::shapes::regrouped;
use super::tensor::{Element, floats_within, initializer, read_integers};
use ndarray::{ArrayD, IxDyn};

/// Whether [`Graph::folded`] computes a node.
pub(crate) fn folds(node: &NodeProto) -> bool {
    const OPERATORS: [&str; 9] =
        ["Identity", "Cast", "DequantizeLinear", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand"];
    is_standard(node) && OPERATORS.contains(&node.op_type())
}

/// What a `Shape` node gives for a value of these dimensions.
pub(crate) fn shape_of(node: &NodeProto, dims: &[i64]) -> Option<Vec<i64>> {
    let rank = i64::try_from(dims.len()).ok()?;
    let place = |name: &str, otherwise: i64| {
        let stated = attributes::int(node, name).unwrap_or(otherwise);
        usize::try_from(if stated < 0 { stated + rank } else { stated }.clamp(0, rank)).ok()
    };
    dims.get(place("start", 0)?..place("end", rank)?).map(<[i64]>::to_vec)
}

/// Elements that `Expand` makes at most.
const MOST_EXPANDED: usize = 1 << 20;
/// Operators behind a constant that are computed at most.
const MOST_STEPS: usize = 32;

impl Graph<'_> {
    /// The floating-point tensor that a name stands for, what rearranges or converts a constant computed; none if it is not one.
    pub(crate) fn folded(&self, name: &str) -> Option<TensorProto> {
        self.folded_within(name, MOST_STEPS)
    }

    fn folded_within(&self, name: &str, steps: usize) -> Option<TensorProto> {
        if let Some(tensor) = self.constant(name) {
            return Some(tensor.clone());
        }
        let node = self.producer(name).map(|n| &self.nodes()[n]).filter(|n| folds(n))?;
        if node.op_type() == "DequantizeLinear" {
            return self.dequantized(name, node);
        }
        let from = self.folded_within(node.input.first()?, steps.checked_sub(1)?)?;
        match Precision::of(from.data_type())? {
            Precision::Double => self.applied::<f64>(node, name, from),
            _ => self.applied::<f32>(node, name, from),
        }
    }

    /// What a node makes of a tensor, its elements read in a type that holds them.
    fn applied<T: Element>(&self, node: &NodeProto, name: &str, from: TensorProto) -> Option<TensorProto> {
        let precision = Precision::of(from.data_type())?;
        let dims: Vec<usize> = from.dims.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
        let elements = || floats_within::<T>(&from, 0..usize::MAX);
        let made = |dims: &[usize], elements: Vec<T>, precision| {
            Some(initializer(name.to_owned(), dims, elements.into_iter(), precision))
        };
        match node.op_type() {
            "Identity" => Some(from),
            "Cast" => {
                let to = DataType::try_from(i32::try_from(attributes::int(node, "to")?).ok()?).ok()?;
                made(&dims, elements(), Precision::of(to as i32)?)
            }
            "Expand" => {
                let shape = self.integers(node.input.get(1)?)?;
                let shape: Vec<usize> = shape.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
                let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= MOST_EXPANDED)?;
                // Of one number, as biases are, or to what it is already.
                match elements()[..] {
                    [only] => {
                        // It keeps axes that it has more than are asked for.
                        let more = dims.len().saturating_sub(shape.len());
                        made(&[vec![1; more], shape].concat(), vec![only; count], precision)
                    }
                    _ => (dims == shape).then_some(from),
                }
            }
            "Transpose" => {
                let order = match attributes::ints(node, "perm") {
                    Some(order) => order.iter().map(|&a| usize::try_from(a).ok()).collect::<Option<Vec<_>>>()?,
                    None => (0..dims.len()).rev().collect(),
                };
                let mut sorted = order.clone();
                sorted.sort_unstable();
                let stored = ArrayD::from_shape_vec(IxDyn(&dims), elements()).ok()?;
                let fits = sorted.into_iter().eq(0..dims.len());
                let turned = fits.then(|| stored.permuted_axes(IxDyn(&order)))?;
                made(turned.shape(), turned.iter().copied().collect(), precision)
            }
            // Whatever the new shape is called, the elements stay in their order.
            _ => {
                let known: Vec<Option<usize>> = dims.iter().copied().map(Some).collect();
                let wanted: Vec<usize> = regrouped(self, node, Some(&known))?.into_iter().collect::<Option<_>>()?;
                let (count, elements) = (wanted.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?, elements());
                (count == elements.len()).then(|| made(&wanted, elements, precision))?
            }
        }
    }

    /// What a constant is stored as that a name stands for, before anything rearranges or converts it.
    pub(crate) fn stored<'n>(&'n self, mut name: &'n str) -> &'n str {
        for _ in 0..MOST_STEPS {
            let node =
                self.producer(name).map(|n| &self.nodes()[n]).filter(|n| folds(n) && self.constant(name).is_none());
            let Some(input) = node.and_then(|n| n.input.first()) else { break };
            name = input;
        }
        name
    }

    /// Constant integers, the shape of a constant among them.
    fn integers(&self, name: &str) -> Option<Vec<i64>> {
        if let Some(tensor) = self.constant(name) {
            return read_integers(tensor);
        }
        let node =
            self.producer(name).map(|n| &self.nodes()[n]).filter(|n| is_standard(n) && n.op_type() == "Shape")?;
        shape_of(node, &self.constant(node.input.first()?)?.dims)
    }
}
