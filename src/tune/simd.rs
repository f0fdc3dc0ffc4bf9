//! Loops over slices, compiled for the vector units that the machine turns out to have: the only user of pulp.

use pulp::Arch;

/// `y = f(x)`.
pub(super) fn each(y: &mut [f32], x: &[f32], f: impl Fn(f32) -> f32) {
    Arch::new().dispatch(
        #[inline(always)]
        || y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x)),
    );
}

/// `y += f(a, b)`.
pub(super) fn pairs(y: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) {
    Arch::new().dispatch(
        #[inline(always)]
        || y.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y += f(a, b)),
    );
}

/// `y += x`.
pub(super) fn add_to(y: &mut [f32], x: &[f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || y.iter_mut().zip(x).for_each(|(y, &x)| *y += x),
    );
}

/// The sum, in eight lanes.
pub(super) fn sum(x: &[f32]) -> f32 {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let chunks = x.chunks_exact(8);
            let rest: f32 = chunks.remainder().iter().sum();
            let mut lanes = [0.0; 8];
            chunks.for_each(|chunk| lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += x));
            rest + lanes.iter().sum::<f32>()
        },
    )
}
