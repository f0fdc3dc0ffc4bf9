//! The library against `tools/reference.py`, an implementation of its own by dense SVDs: frozen results of small problems.

use ndarray::Array4;
use onnx_jmd::factor::{analyse, factorize, parameters};
use onnx_jmd::{Form, Scheme, Unfolding};
use serde_json::Value;

/// Turns of schemes of two chains, as many as the reference takes.
const TURNS: usize = 400;

fn frozen() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/reference.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Numbers in [-1/2, 1/2) by splitmix64, the k-th from state seed + (k+1)·0x9E3779B97F4A7C15.
fn uniform(seed: u64) -> impl Iterator<Item = f64> {
    (1u64..).map(move |k| {
        let z = seed.wrapping_add(k.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 * 2f64.powi(-53) - 0.5
    })
}

fn shape(value: &Value) -> [usize; 4] {
    let dims: Vec<usize> = value.as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
    dims.try_into().unwrap()
}

fn kernels(seed: &Value, shapes: &[[usize; 4]]) -> Vec<Array4<f64>> {
    let mut drawn = uniform(seed.as_u64().unwrap());
    shapes.iter().map(|s| Array4::from_shape_simple_fn(*s, || drawn.next().unwrap())).collect()
}

fn unfolding(value: &Value) -> Unfolding {
    let all = [Unfolding::SPATIAL, Unfolding::FILTER_BANK, Unfolding::POINTWISE_FIRST, Unfolding::TUCKER];
    all.into_iter().find(|u| u.name() == value.as_str().unwrap()).unwrap()
}

fn squared(kernel: &Array4<f64>) -> f64 {
    kernel.iter().map(|x| x * x).sum()
}

#[test]
fn errors_products_and_parameters_are_those_of_the_reference() {
    let frozen = frozen();
    let cases = frozen["cases"].as_array().unwrap();
    assert!(cases.len() > 100);
    for case in cases {
        let shapes: Vec<[usize; 4]> = case["shapes"].as_array().unwrap().iter().map(shape).collect();
        let kernels = kernels(&case["seed"], &shapes);
        let ranks: Vec<usize> =
            case["ranks"].as_array().unwrap().iter().map(|r| r.as_u64().unwrap() as usize).collect();
        let split = ranks[0] as f64 / ranks.iter().sum::<usize>() as f64;
        let schemes = [
            Scheme::Separate,
            Scheme::LeftShared,
            Scheme::RightShared,
            Scheme::BothShared { split },
            Scheme::PartlyCoupled { split },
            Scheme::CoupledTensorTrain { split },
        ];
        let name = case["scheme"].as_str().unwrap();
        let scheme = schemes.into_iter().find(|s| s.name() == name).unwrap();
        // A group of one is decomposed alone, whatever is asked for.
        if shapes.len() == 1 && scheme != Scheme::Separate {
            continue;
        }
        let unfolding = unfolding(&case["unfolding"]);
        let scheme = if unfolding.twice && ranks.len() == 1 && name == "bi-jsvd" {
            Scheme::BothShared { split: 0.5 }
        } else {
            scheme
        };
        let form: Form = scheme.on(unfolding);
        let chains = form.chains();
        let analysis = analyse(&chains, &kernels[..], usize::MAX).unwrap();
        let factors = factorize(&chains, &kernels[..], &ranks, TURNS, &analysis).unwrap();
        let lost: f64 = kernels.iter().enumerate().map(|(i, k)| squared(&(k - &factors.reconstruct(i)))).sum();
        let found = (lost / kernels.iter().map(squared).sum::<f64>()).sqrt();
        let expected = case["error"].as_f64().unwrap();
        assert!((found / expected - 1.0).abs() < 1e-6, "{form} {ranks:?} of {shapes:?}: {found}, not {expected}");
        assert_eq!(parameters(&chains, &ranks, &shapes), case["stored"].as_u64().unwrap(), "{form}");
        if chains.len() == 1 {
            let product = factors.reconstruct(0);
            for (ours, theirs) in product.iter().zip(case["first"].as_array().unwrap()) {
                assert!((ours - theirs.as_f64().unwrap()).abs() < 1e-6, "{form} {ranks:?} of {shapes:?}");
            }
        }
    }
}

#[test]
fn spectra_are_those_of_the_reference() {
    for case in frozen()["spectra"].as_array().unwrap() {
        let form = Scheme::Separate.on(unfolding(&case["unfolding"]));
        let kernels = kernels(&case["seed"], &[shape(&case["shape"])]);
        let analysis = analyse(&form.chains(), &kernels[..], usize::MAX).unwrap();
        let squares: Vec<f64> = case["squares"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
        for rank in 0..=squares.len() {
            let beyond: f64 = squares[rank..].iter().sum();
            assert!((analysis.error(&[rank]) - beyond).abs() < 1e-10 * analysis.energy(), "{form} {rank}");
        }
    }
}
