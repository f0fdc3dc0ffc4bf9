//! Activations that hide deviations: a rectifier maps many values alike.

use crate::onnx::{Graph, attributes, is_standard, read_floats};

/// The range within which an activation tells values apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Window {
    low: f32,
    high: f32,
}

impl Window {
    /// That of the `Relu` or `Clip` that alone reads a value, if one does.
    pub(super) fn reading(graph: &Graph<'_>, value: &str) -> Option<Self> {
        let (index, _) = graph.only_reader(value)?;
        let node = Some(&graph.nodes()[index]).filter(|n| is_standard(n))?;
        match node.op_type() {
            "Relu" => Some(Self { low: 0.0, high: f32::INFINITY }),
            "Clip" => {
                // Attributes before opset 11, inputs since; either may be left out.
                let bound = |attribute: &str, position: usize, open: f32| match node.input.get(position) {
                    Some(name) if !name.is_empty() => read_floats(graph.constant(name)?)?.first().copied(),
                    _ => Some(attributes::float(node, attribute).unwrap_or(open)),
                };
                Some(Self { low: bound("min", 1, f32::NEG_INFINITY)?, high: bound("max", 2, f32::INFINITY)? })
            }
            _ => None,
        }
    }

    /// The value to aim at: the original's, or where the activation is flat anything that it maps alike.
    pub(super) fn aim(self, original: f32, now: f32) -> f32 {
        if original <= self.low {
            now.min(self.low)
        } else if original >= self.high {
            now.max(self.high)
        } else {
            original
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::Model;
    use crate::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};

    /// The window of one node that reads 'x', with constants by name.
    fn window(
        operator: &str,
        bounds: &[&str],
        attributes: &[(&str, f32)],
        constants: &[(&str, f32)],
    ) -> Option<Window> {
        let node = NodeProto {
            op_type: Some(operator.into()),
            input: std::iter::once("x").chain(bounds.iter().copied()).map(String::from).collect(),
            output: vec!["y".into()],
            attribute: attributes
                .iter()
                .map(|&(name, value)| AttributeProto {
                    name: Some(name.into()),
                    r#type: Some(1),
                    f: Some(value),
                    ..AttributeProto::default()
                })
                .collect(),
            ..NodeProto::default()
        };
        let initializer = constants.iter().map(|&(name, value)| TensorProto {
            name: Some(name.into()),
            data_type: Some(1),
            float_data: vec![value],
            ..TensorProto::default()
        });
        let given = node.input.iter().filter(|name| !name.is_empty() && constants.iter().all(|c| c.0 != *name));
        let input =
            given.map(|name| ValueInfoProto { name: Some(name.clone()), ..ValueInfoProto::default() }).collect();
        let graph = GraphProto { node: vec![node], input, initializer: initializer.collect(), ..GraphProto::default() };
        let model = Model::from_proto(ModelProto { graph: Some(graph), ..ModelProto::default() });
        Window::reading(&Graph::new(&model).unwrap(), "x")
    }

    #[test]
    fn bounds_are_read_from_attributes_and_from_inputs() {
        let (low, high) = (f32::NEG_INFINITY, f32::INFINITY);
        assert_eq!(window("Relu", &[], &[], &[]), Some(Window { low: 0.0, high }));
        assert_eq!(window("Clip", &[], &[], &[]), Some(Window { low, high }));
        assert_eq!(window("Clip", &[], &[("min", 0.0), ("max", 6.0)], &[]), Some(Window { low: 0.0, high: 6.0 }));
        assert_eq!(window("Clip", &["a", "b"], &[], &[("a", -1.0), ("b", 1.0)]), Some(Window { low: -1.0, high: 1.0 }));
        assert_eq!(window("Clip", &["", "b"], &[], &[("b", 6.0)]), Some(Window { low, high: 6.0 }));
        // A bound that is computed is not known, and other activations tell all values apart.
        assert_eq!(window("Clip", &["a"], &[], &[]), None);
        assert_eq!(window("Sigmoid", &[], &[], &[]), None);
    }

    #[test]
    fn a_deviation_that_the_activation_hides_is_aimed_at() {
        let window = Window { low: 0.0, high: 6.0 };
        // (original, now) → aim
        for (original, now, aim) in
            [(3.0, 5.0, 3.0), (3.0, -5.0, 3.0), (-1.0, -4.0, -4.0), (-1.0, 2.0, 0.0), (7.0, 9.0, 9.0), (7.0, 4.0, 6.0)]
        {
            assert_eq!(window.aim(original, now), aim, "{original}, {now}");
        }
    }
}
