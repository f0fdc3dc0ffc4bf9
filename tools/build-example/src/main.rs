//! Classifies an image with a network that was compressed when this was built.

use tract_onnx::onnx;
use tract_onnx::prelude::*;

static NETWORK: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/small.onnx"));
static IMAGES: &[u8] = include_bytes!("../../../fixtures/fashion-test-images.npy");
static LABELS: &[u8] = include_bytes!("../../../fixtures/fashion-test-labels.npy");

/// Height and width of an image.
const SIDE: usize = 28;
/// Bytes before the values of a small `.npy` file.
const HEADER: usize = 128;
const CLASSES: [&str; 10] =
    ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let wanted: usize = std::env::args().nth(1).map_or(Ok(0), |n| n.parse())?;
    let pixels = IMAGES[HEADER..].chunks_exact(SIDE * SIDE).nth(wanted);
    let (Some(pixels), Some(&label)) = (pixels, LABELS[HEADER..].get(wanted)) else {
        return Err(format!("there is no image {wanted}").into());
    };
    let image: Vec<f32> = pixels.iter().map(|&p| f32::from(p) / 255.0).collect();
    let input = Tensor::from_shape(&[1, 1, SIDE, SIDE], &image)?;
    let network = onnx()
        .model_for_read(&mut &*NETWORK)?
        .with_input_fact(0, f32::fact([1, 1, SIDE, SIDE]).into())?
        .into_optimized()?
        .into_runnable()?;
    let outputs = network.run(tvec!(input.into()))?;
    let scores = outputs[0].cast_to::<f32>()?;
    let scores = scores.to_plain_array_view::<f32>()?;
    let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(class, _)| class);
    println!(
        "image {wanted} is a {}, labelled {}, by a network of {} bytes",
        CLASSES[best],
        CLASSES[usize::from(label)],
        NETWORK.len()
    );
    Ok(())
}
