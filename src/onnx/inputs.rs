//! What a model is fed with: names, types and dimensions of its inputs, and shapes that are given for them.

use super::Model;
use super::proto::{TensorProto, ValueInfoProto, tensor_proto::DataType, tensor_shape_proto, type_proto};
use super::window::LARGEST;
use crate::error::{Error, Result};
use std::collections::HashSet;

impl Model {
    /// Graph inputs that a caller has to feed: name, element type as ONNX names it, and dimensions, `None` where symbolic.
    #[must_use]
    pub fn inputs(&self) -> Vec<(String, String, Vec<Option<u64>>)> {
        let Some(graph) = &self.proto().graph else {
            return Vec::new();
        };
        let constant: HashSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
        let fed = graph.input.iter().filter(|i| !constant.contains(i.name()));
        fed.map(|i| (i.name().to_owned(), element_type(i), dimensions(i))).collect()
    }

    /// Refuses shapes for inputs that there are not, and those that contradict what the model says of its input. A batch that it
    /// fixes may be another, so that it can be run on one image at a time.
    ///
    /// # Errors
    /// [`Error::Options`] naming one.
    pub(crate) fn check_shapes(&self, shapes: &[InputShape]) -> Result<()> {
        let inputs = self.inputs();
        let unknown = |name: &&String| inputs.iter().all(|i| i.0 != **name);
        if let Some(name) = shapes.iter().filter_map(|s| s.name.as_ref()).find(unknown) {
            let known: Vec<&str> = inputs.iter().map(|i| i.0.as_str()).collect();
            let known = known.join(", ");
            return Err(Error::Options(format!("--input-shape names '{name}', but the inputs are: {known}")));
        }
        if inputs.len() != 1 && shapes.iter().any(|shape| shape.name.is_none()) {
            let names: Vec<&str> = inputs.iter().map(|i| i.0.as_str()).collect();
            let names = names.join(", ");
            return Err(Error::Options(format!(
                "--input-shape names no input, and there are {}: {names}",
                inputs.len()
            )));
        }
        for shape in shapes {
            let of_name =
                |input: &&(String, String, Vec<Option<u64>>)| shape.name.as_ref().is_none_or(|name| *name == input.0);
            let Some((name, _, stated)) = inputs.iter().find(of_name) else { continue };
            // Without any dimension the rank may be open, too.
            let fits =
                shape.dims.iter().zip(stated).skip(1).all(|(&given, stated)| stated.is_none_or(|n| n == given as u64));
            if !stated.is_empty() && (shape.dims.len() != stated.len() || !fits) {
                let stated: Vec<String> = stated.iter().map(|d| d.map_or("?".into(), |n| n.to_string())).collect();
                return Err(Error::Options(format!(
                    "--input-shape says {:?} of input '{name}', but the model says [{}]: only its first dimension and open ones can be given",
                    shape.dims,
                    stated.join(", ")
                )));
            }
        }
        Ok(())
    }
}

fn tensor_type(value: &ValueInfoProto) -> Option<&type_proto::Tensor> {
    match value.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(t) => Some(t),
        _ => None,
    }
}

fn element_type(value: &ValueInfoProto) -> String {
    let found = tensor_type(value).and_then(|t| DataType::try_from(t.elem_type()).ok());
    found.unwrap_or(DataType::Undefined).as_str_name().to_owned()
}

/// Dimensions of a value, `None` where symbolic or unknown; empty if it has no shape.
pub(super) fn dimensions(value: &ValueInfoProto) -> Vec<Option<u64>> {
    use tensor_shape_proto::dimension::Value;
    let dims = tensor_type(value).and_then(|t| t.shape.as_ref()).map_or(&[][..], |s| &s.dim);
    dims.iter()
        .map(|d| match d.value {
            Some(Value::DimValue(n)) => u64::try_from(n).ok().filter(|&n| n > 0 && n <= LARGEST as u64),
            _ => None,
        })
        .collect()
}

/// A shape for one graph input, as in `image:1,3,224,224`; without a name it is for the only input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputShape {
    /// The input's name; none means the model's only one.
    pub name: Option<String>,
    /// Its dimensions.
    pub dims: Vec<usize>,
}

impl std::str::FromStr for InputShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Names may hold colons, dimensions cannot.
        let (name, dims) = match text.rsplit_once(':') {
            Some((name, dims)) => (Some(name.to_owned()), dims),
            None => (None, text),
        };
        let dims: Option<Vec<usize>> = dims.split(',').map(|d| d.trim().parse().ok().filter(|&n| n > 0)).collect();
        let dims = dims.ok_or_else(|| format!("'{text}' is not NAME:1,3,224,224"))?;
        Ok(Self { name, dims })
    }
}
