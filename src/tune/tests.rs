//! Gradients by weights against differences of the forward pass, which the view itself holds against tract.

use super::tape::Tape;
use crate::gradient::tests::{Net, int, ints, off_the_kinks, random};
use crate::onnx::Model;
use crate::onnx::proto::AttributeProto;
use crate::runtime::inputs;
use ndarray::ArrayD;
use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use std::collections::HashSet;

/// Half the distance of the two runs that are compared.
const STEP: f32 = 4e-3;
/// Differences of f32 runs, against the length that the gradient's part along a random direction has.
const TOLERANCE: f32 = 1e-2;

/// Asserts that the gradients by some initializers are what differences of the outputs say.
pub(crate) fn check(model: &Model, x: &ArrayD<f32>, trained: &[&str], what: &str) {
    let names: HashSet<String> = trained.iter().map(|n| (*n).to_owned()).collect();
    let feed = vec![x.clone()];
    let tape = Tape::new(model, &inputs(model, &[]).unwrap(), &feed, &names).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(tape.parameters().len(), trained.len(), "{what}");
    let (mut workspace, start) = (tape.workspace(), tape.initial());
    let mut rng = Pcg64Mcg::seed_from_u64(7);
    let dims = |name: &String| tape.dims(name).unwrap().to_vec();
    let cotangents: Vec<ArrayD<f32>> = tape.outputs().iter().map(|o| random(&mut rng, &dims(o))).collect();
    let mut gradients = tape.zeros();
    // Twice, so that what one sample leaves behind would show.
    for _ in 0..2 {
        tape.forward(&mut workspace, &start, &feed);
        for (output, cotangent) in tape.outputs().iter().zip(&cotangents) {
            tape.cotangent(&mut workspace, output).iter_mut().zip(cotangent).for_each(|(g, c)| *g += c);
        }
        tape.backward(&mut workspace, &start, &mut gradients);
    }
    for (at, gradient) in gradients.iter().enumerate() {
        for _ in 0..2 {
            let direction = random(&mut rng, &[gradient.len()]);
            let mut side = |sign: f32| -> f32 {
                let mut moved = start.clone();
                moved[at].iter_mut().zip(&direction).for_each(|(p, d)| *p += sign * STEP * d);
                tape.forward(&mut workspace, &moved, &feed);
                let along = |(o, c): (&String, &ArrayD<f32>)| -> f32 {
                    tape.value(&workspace, o).iter().zip(c).map(|(y, c)| y * c).sum()
                };
                tape.outputs().iter().zip(&cotangents).map(along).sum()
            };
            let expected = (side(1.0) - side(-1.0)) / (2.0 * STEP);
            let actual = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum::<f32>() / 2.0;
            let length = gradient.iter().map(|g| g * g).sum::<f32>().sqrt() / 2.0;
            let name = &tape.parameters()[at].name;
            assert!(
                length > 0.0 && (expected - actual).abs() <= TOLERANCE * length,
                "{what} by {name}: {expected} {actual}"
            );
        }
    }
}

/// Checks the gradients by all constants of one operator.
fn by_constants(dims: &[usize], operator: &str, constants: &[&[usize]], attributes: &[AttributeProto]) {
    let names: Vec<String> = (0..constants.len()).map(|i| format!("c{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let model = Net::of(dims, operator, constants, attributes).model("y");
    check(&model, &off_the_kinks(&mut Pcg64Mcg::seed_from_u64(5), dims), &names, operator);
}

#[test]
fn convolutions_by_kernel_and_bias() {
    let image = [1, 4, 7, 6];
    by_constants(&image, "Conv", &[&[5, 4, 3, 3], &[5]], &[]);
    by_constants(&image, "Conv", &[&[5, 4, 1, 1]], &[]);
    by_constants(&image, "Conv", &[&[6, 4, 3, 1], &[6]], &[ints("pads", &[1, 0, 1, 0])]);
    by_constants(&image, "Conv", &[&[6, 4, 1, 3], &[6]], &[ints("pads", &[0, 1, 0, 1])]);
    by_constants(&image, "Conv", &[&[3, 4, 3, 2]], &[ints("strides", &[2, 1]), ints("pads", &[1, 0, 0, 1])]);
    by_constants(&image, "Conv", &[&[3, 4, 2, 3]], &[ints("dilations", &[2, 1])]);
    by_constants(&image, "Conv", &[&[6, 2, 3, 3], &[6]], &[int("group", 2)]);
    by_constants(&image, "Conv", &[&[4, 1, 3, 3]], &[int("group", 4), ints("strides", &[2, 2])]);
    by_constants(&[1, 3, 9], "Conv", &[&[5, 3, 3], &[5]], &[ints("strides", &[2]), ints("pads", &[1, 1])]);
    by_constants(&[1, 4, 5, 4], "ConvTranspose", &[&[4, 3, 3, 3], &[3]], &[ints("strides", &[2, 2])]);
    by_constants(&[1, 4, 5, 4], "ConvTranspose", &[&[4, 2, 2, 3]], &[int("group", 2), ints("pads", &[1, 0, 0, 1])]);
}

#[test]
fn products_by_matrix_and_bias() {
    by_constants(&[1, 6], "Gemm", &[&[6, 4], &[4]], &[]);
    by_constants(&[1, 6], "Gemm", &[&[4, 6], &[1, 4]], &[int("transB", 1)]);
    by_constants(&[3, 6], "Gemm", &[&[6, 4], &[4]], &[]);
    by_constants(&[1, 5, 6], "MatMul", &[&[6, 4]], &[]);
}

#[test]
fn arithmetic_by_broadcast_constants() {
    for operator in ["Add", "Sub", "Mul", "Div"] {
        by_constants(&[1, 4, 3, 5], operator, &[&[4, 1, 1]], &[]);
        by_constants(&[1, 4, 3, 5], operator, &[&[1]], &[]);
        by_constants(&[1, 4, 3, 5], operator, &[&[1, 4, 3, 5]], &[]);
    }
}

#[test]
fn batch_norms_by_scale_and_shift() {
    let dims = [1, 4, 3, 5];
    let net = Net::of(&dims, "Identity", &[], &[]);
    let net = net.random("scale", &[4]).random("shift", &[4]).random("mean", &[4]).positive("variance", &[4]);
    let model = net.node("BatchNormalization", "y scale shift mean variance", "z", &[]).model("z");
    check(&model, &off_the_kinks(&mut Pcg64Mcg::seed_from_u64(5), &dims), &["scale", "shift"], "BatchNormalization");
}

#[test]
fn a_tensor_that_several_nodes_read_gets_the_sum() {
    let dims = [1, 3, 5, 5];
    let net = Net::of(&dims, "Relu", &[], &[]).random("k", &[3, 3, 1, 1]);
    let net = net.node("Conv", "y k", "a", &[]).node("Conv", "a k", "b", &[]).node("Add", "a b", "z", &[]);
    check(&net.model("z"), &off_the_kinks(&mut Pcg64Mcg::seed_from_u64(5), &dims), &["k"], "shared");
}

#[test]
fn shapes_computed_from_shapes_are_folded() {
    let dims = [1, 4, 3, 5];
    let net = Net::of(&dims, "Identity", &[], &[]).random("k", &[60, 2]);
    let net = net.integers("zero", &[0]).integers("rest", &[-1]).node("Shape", "y", "s", &[]);
    let net = net.node("Gather", "s zero", "n", &[int("axis", 0)]).node("Concat", "n rest", "t", &[int("axis", 0)]);
    let net = net.node("Reshape", "y t", "flat", &[]).node("Gemm", "flat k", "z", &[]);
    check(&net.model("z"), &off_the_kinks(&mut Pcg64Mcg::seed_from_u64(5), &dims), &["k"], "computed shape");
}

#[test]
fn an_operator_without_a_rule_is_named() {
    let dims = [1, 4, 3, 5];
    let net = Net::of(&dims, "Mul", &[&[4, 1, 1]], &[]).node("Round", "y", "z", &[]);
    let model = net.model("z");
    let trained = HashSet::from(["c0".to_owned()]);
    let x = off_the_kinks(&mut Pcg64Mcg::seed_from_u64(5), &dims);
    let refused = Tape::new(&model, &inputs(&model, &[]).unwrap(), &vec![x], &trained).err().unwrap().to_string();
    assert!(refused.contains("'Round-z'") && refused.contains("through Round"), "{refused}");
}
