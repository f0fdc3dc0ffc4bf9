//! How the kernels of convolutions and poolings slide over any number of spatial axes.

use super::attributes;
use super::proto::NodeProto;

/// Sizes and attributes beyond this are taken for damage; products of two of them do not overflow.
pub(super) const LARGEST: i64 = 1 << 24;
/// More padding than this is taken for damage.
const LARGEST_PAD: i64 = 4096;

/// The attributes of a sliding window, each with one entry a spatial axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) kernel: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    pub(crate) dilations: Vec<usize>,
    pub(crate) padding: Padding,
    /// What a transposed convolution adds at the end.
    pub(crate) output_padding: Vec<usize>,
    /// Groups of channels, each with kernels of its own: more than one of a grouped convolution.
    pub(crate) groups: usize,
    ceil: bool,
}

/// What is added around the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Padding {
    /// Before each axis, then after each.
    Given(Vec<usize>),
    /// As much as an output of `input / stride`, rounded up, asks for, the odd one after.
    SameUpper,
    /// The odd one before.
    SameLower,
}

impl Padding {
    /// ONNX's name, where the amounts are left open.
    pub(crate) fn auto_pad(&self) -> Option<&'static str> {
        match self {
            Self::Given(_) => None,
            Self::SameUpper => Some("SAME_UPPER"),
            Self::SameLower => Some("SAME_LOWER"),
        }
    }
}

impl Window {
    /// Reads the attributes of a kernel of this size, or says what is wrong with them.
    pub(super) fn of(node: &NodeProto, kernel: &[usize]) -> Result<Self, String> {
        let axes = kernel.len();
        let read =
            |name: &str, count: usize, least: i64, most: i64, otherwise: usize| match attributes::ints(node, name) {
                None | Some([]) => Ok(vec![otherwise; count]),
                Some(values) if values.len() == count && values.iter().all(|v| (least..=most).contains(v)) => {
                    Ok(values.iter().map(|&v| v as usize).collect())
                }
                Some(other) => Err(format!("its {name} are {other:?}")),
            };
        if kernel.iter().any(|&k| k == 0 || k > LARGEST as usize) {
            return Err(format!("its kernel has the spatial axes {kernel:?}"));
        }
        if let Some(stated) = attributes::ints(node, "kernel_shape")
            && !stated.iter().copied().eq(kernel.iter().map(|&k| k as i64))
        {
            return Err(format!("its kernel_shape {stated:?} is not its kernel's {kernel:?}"));
        }
        let padding = match attributes::string(node, "auto_pad").unwrap_or("NOTSET") {
            "NOTSET" | "" => Padding::Given(read("pads", 2 * axes, 0, LARGEST_PAD, 0)?),
            "VALID" => Padding::Given(vec![0; 2 * axes]),
            "SAME_UPPER" => Padding::SameUpper,
            "SAME_LOWER" => Padding::SameLower,
            other => return Err(format!("its auto_pad is '{other}'")),
        };
        let padded = attributes::ints(node, "pads").is_some_and(|pads| pads.iter().any(|&p| p != 0));
        if padded && !matches!(attributes::string(node, "auto_pad"), None | Some("NOTSET" | "")) {
            return Err("its auto_pad and its pads contradict each other".into());
        }
        let groups = attributes::int(node, "group").unwrap_or(1);
        if !(1..=LARGEST).contains(&groups) {
            return Err(format!("its group is {groups}"));
        }
        Ok(Self {
            kernel: kernel.to_vec(),
            groups: groups as usize,
            strides: read("strides", axes, 1, LARGEST, 1)?,
            dilations: read("dilations", axes, 1, LARGEST, 1)?,
            padding,
            output_padding: read("output_padding", axes, 0, LARGEST, 0)?,
            ceil: attributes::int(node, "ceil_mode").unwrap_or(0) == 1,
        })
    }

    /// Of a pooling, which says its kernel itself.
    pub(super) fn of_pool(node: &NodeProto) -> Option<Self> {
        let kernel = attributes::ints(node, "kernel_shape")?;
        let kernel: Option<Vec<usize>> = kernel.iter().map(|&k| usize::try_from(k).ok()).collect();
        Self::of(node, &kernel?).ok()
    }

    /// That of a transposed convolution with the pads that its `output_shape` or `auto_pad` stands for (ONNX operator ConvTranspose); those
    /// of an `output_shape`, or the output padding, only if the size of its input is known. The odd one of what is taken away is the last for `SAME_UPPER`, else
    /// the first.
    pub(super) fn closed(self, node: &NodeProto, input: &[Option<usize>]) -> Self {
        let stated = attributes::ints(node, "output_shape").filter(|s| !s.is_empty());
        if stated.is_none() && matches!(self.padding, Padding::Given(_)) {
            return self;
        }
        let (axes, upper) = (self.kernel.len(), self.padding == Padding::SameUpper);
        let unpadded = Self { padding: Padding::Given(vec![0; 2 * axes]), ..self.clone() };
        let (mut pads, mut output_padding) = (vec![0; 2 * axes], self.output_padding.clone());
        for axis in 0..axes {
            let total = match stated {
                // Without pads it would be as large as this.
                Some(sizes) => {
                    let wanted = sizes.get(axis).and_then(|&n| usize::try_from(n).ok());
                    let all = input.get(axis).copied().flatten().and_then(|n| unpadded.grown(axis, n));
                    // What the kernel does not reach is added at the end.
                    let short = all.zip(wanted).map_or(0, |(all, wanted)| wanted.saturating_sub(all));
                    output_padding[axis] += short;
                    let fits = short == 0 || output_padding[axis] < self.strides[axis];
                    all.zip(wanted).filter(|_| fits).map(|(all, wanted)| all.saturating_sub(wanted))
                }
                // Of `stride` times its input, whatever that is. Where a kernel does not reach so far, runtimes differ.
                None => (self.reach(axis) + self.output_padding[axis]).checked_sub(self.strides[axis]),
            };
            let Some(total) = total else { return Self { padding: Padding::SameLower, ..self } };
            let small = total / 2;
            pads[axis] = if upper { small } else { total - small };
            pads[axis + axes] = if upper { total - small } else { small };
        }
        Self { padding: Padding::Given(pads), output_padding, ..self }
    }

    /// Extent of the dilated kernel along an axis.
    pub(crate) fn reach(&self, axis: usize) -> usize {
        self.dilations[axis] * (self.kernel[axis] - 1) + 1
    }

    /// Pads before each axis, then after each, for an input of this size; none where they depend on what is not known.
    pub(crate) fn pads(&self, input: &[Option<usize>]) -> Option<Vec<usize>> {
        let upper = match &self.padding {
            Padding::Given(pads) => return Some(pads.clone()),
            other => *other == Padding::SameUpper,
        };
        let axes = self.kernel.len();
        let mut pads = vec![0; 2 * axes];
        for axis in 0..axes {
            // At stride one the padding does not depend on the input's size.
            let total = match (self.strides[axis], input.get(axis).copied().flatten()) {
                (1, _) => self.reach(axis) - 1,
                (stride, Some(n)) => {
                    (n.div_ceil(stride).saturating_sub(1) * stride + self.reach(axis)).saturating_sub(n)
                }
                (_, None) => return None,
            };
            let small = total / 2;
            pads[axis] = if upper { small } else { total - small };
            pads[axis + axes] = if upper { total - small } else { small };
        }
        Some(pads)
    }

    /// Size of a convolution's or pooling's output along an axis.
    pub(super) fn output(&self, axis: usize, input: usize) -> Option<usize> {
        let stride = self.strides[axis];
        let Padding::Given(pads) = &self.padding else { return Some(input.div_ceil(stride)) };
        let room = (input + pads[axis] + pads[axis + self.kernel.len()]).checked_sub(self.reach(axis))?;
        if !self.ceil {
            return Some(room / stride + 1);
        }
        let last = room.div_ceil(stride);
        // A window that would start behind the input and the pads before it is none (ONNX operator MaxPool).
        Some(if last * stride >= input + pads[axis] { last } else { last + 1 })
    }

    /// Size of a transposed convolution's output along an axis.
    pub(super) fn grown(&self, axis: usize, input: usize) -> Option<usize> {
        let Padding::Given(pads) = &self.padding else { return None };
        let all = input.checked_sub(1)?.checked_mul(self.strides[axis])? + self.reach(axis) + self.output_padding[axis];
        all.checked_sub(pads[axis] + pads[axis + self.kernel.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{AttributeProto, attribute_proto::AttributeType};

    #[test]
    fn an_output_of_a_stated_size_is_reached_by_pads() {
        let ints = |name: &str, values: &[i64]| AttributeProto {
            name: Some(name.into()),
            r#type: Some(AttributeType::Ints as i32),
            ints: values.to_vec(),
            ..AttributeProto::default()
        };
        let mut node = NodeProto {
            attribute: vec![ints("strides", &[2, 2]), ints("output_shape", &[10, 11])],
            ..NodeProto::default()
        };
        let closed = |node: &NodeProto| Window::of(node, &[3, 3]).unwrap().closed(node, &[Some(5), Some(6)]).padding;
        // Without pads 5 become 11 and 6 become 13.
        assert_eq!(closed(&node), Padding::Given(vec![1, 1, 0, 1]));
        node.attribute.push(AttributeProto {
            name: Some("auto_pad".into()),
            s: Some(b"SAME_UPPER".to_vec()),
            ..AttributeProto::default()
        });
        assert_eq!(closed(&node), Padding::Given(vec![0, 1, 1, 1]));
        // One more than the kernel reaches is padding, more than a stride less one cannot be; nor what depends on an unknown size.
        node.attribute[1] = ints("output_shape", &[12, 11]);
        assert_eq!(closed(&node), Padding::Given(vec![0, 1, 0, 1]));
        node.attribute[1] = ints("output_shape", &[13, 11]);
        assert_eq!(closed(&node).auto_pad(), Some("SAME_LOWER"));
        let open = Window::of(&node, &[3, 3]).unwrap().closed(&node, &[None, Some(6)]);
        assert_eq!(open.padding.auto_pad(), Some("SAME_LOWER"));
    }
}
