//! Invariants of the decomposition, on drawn problems.

use ndarray::{Array1, Array2, Array4};
use onnx_jmd::factor::{
    Factor, Factors, Moment, OutputNorm, Refit, Seen, analyse, analyse_calibrated, compose, factorize,
    factorize_calibrated, parameters,
};
use onnx_jmd::{Form, Scheme, Unfolding};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use rand_pcg::Pcg64Mcg;

/// Squared errors of f64 arithmetic on unit-scale data, relative to the energy.
const ROUNDING: f64 = 1e-10;
/// Relative rounding of factors stored as f32, twice, with room for sums of a hundred terms.
const STORED: f64 = 1e-5;

#[derive(Debug, Clone)]
struct Problem {
    shapes: Vec<[usize; 4]>,
    seed: u64,
}

impl Problem {
    fn kernels(&self) -> Vec<Array4<f64>> {
        let mut rng = Pcg64Mcg::seed_from_u64(self.seed);
        let mut draw = |shape: &[usize; 4]| Array4::from_shape_simple_fn(*shape, || StandardNormal.sample(&mut rng));
        self.shapes.iter().map(&mut draw).collect()
    }
}

fn problem() -> impl Strategy<Value = Problem> {
    (1..9usize, 1..9usize, 1..6usize, 1..6usize, 1..5usize, any::<u64>())
        .prop_map(|(o, i, kh, kw, n, seed)| Problem { shapes: vec![[o, i, kh, kw]; n], seed })
}

fn squared(kernel: &Array4<f64>) -> f64 {
    kernel.iter().map(|x| x * x).sum()
}

fn lost(kernels: &[Array4<f64>], factors: &Factors) -> f64 {
    kernels.iter().enumerate().map(|(i, k)| squared(&(k - &factors.reconstruct(i)))).sum()
}

/// Factors of a scheme at a total rank and the squared error that the spectra predict.
fn solve(form: impl Into<Form>, kernels: &[Array4<f64>], rank: usize, iterations: usize) -> (Factors, f64) {
    let form = form.into();
    let chains = form.chains();
    let analysis = analyse(&chains, kernels, usize::MAX).unwrap();
    let ranks = form.ranks(rank);
    (factorize(&chains, kernels, &ranks, iterations, &analysis).unwrap(), analysis.error(&ranks))
}

fn full_rank([out, inputs, kh, kw]: [usize; 4]) -> usize {
    (kh * inputs).min(kw * out)
}

const ONE_SIDED: [Scheme; 3] = [Scheme::Separate, Scheme::LeftShared, Scheme::RightShared];

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_error_of_one_chain_is_the_spectrum_beyond_the_rank(problem in problem(), rank in 1..6usize) {
        let kernels = problem.kernels();
        let rank = rank.min(full_rank(problem.shapes[0]));
        for scheme in ONE_SIDED {
            let (factors, predicted) = solve(scheme, &kernels, rank, 0);
            let energy: f64 = kernels.iter().map(squared).sum();
            let found = lost(&kernels, &factors);
            prop_assert!((found - predicted).abs() <= STORED * energy, "{scheme}: {found} against {predicted}");
        }
    }

    #[test]
    fn cut_twice_no_more_is_lost_than_both_spectra_leave(problem in problem(), rank in 1..9usize) {
        let kernels = problem.kernels();
        let [out, inputs, kh, kw] = problem.shapes[0];
        // What the first side has, all members together or each alone.
        let columns = kh * kw * out;
        let rank = rank.min(if inputs <= columns { out.max(inputs) } else { columns });
        let energy: f64 = kernels.iter().map(squared).sum();
        for scheme in ONE_SIDED.into_iter().chain([Scheme::BothShared { split: 0.5 }]) {
            let form = scheme.on(Unfolding::TUCKER);
            let (factors, predicted) = solve(form, &kernels, rank, 0);
            let found = lost(&kernels, &factors);
            prop_assert!(found <= predicted + STORED * energy, "{form}: {found} against {predicted}");
            prop_assert_eq!(factors.parameters(), parameters(&form.chains(), &form.ranks(rank), &problem.shapes));
            let of = |at: usize| factors.chains[0].factors[at].of(0).floats().shape().to_vec();
            prop_assert_eq!(&of(0)[..], &[rank.min(inputs), inputs, 1, 1]);
            prop_assert_eq!(of(1)[..2].to_vec(), vec![rank.min(out), rank.min(inputs)]);
            if rank == out.max(inputs) {
                prop_assert!(found <= STORED * STORED * energy + ROUNDING, "{form}: {found}");
            }
        }
    }

    #[test]
    fn a_larger_rank_never_loses_more(problem in problem()) {
        let kernels = problem.kernels();
        let energy: f64 = kernels.iter().map(squared).sum();
        for scheme in ONE_SIDED {
            let errors: Vec<f64> =
                (1..=full_rank(problem.shapes[0])).map(|r| lost(&kernels, &solve(scheme, &kernels, r, 0).0)).collect();
            prop_assert!(errors.windows(2).all(|w| w[1] <= w[0] + STORED * energy), "{scheme}: {errors:?}");
        }
    }

    #[test]
    fn at_full_rank_every_member_comes_back(problem in problem()) {
        let kernels = problem.kernels();
        let [out, inputs, kh, kw] = problem.shapes[0];
        let n = kernels.len();
        for (scheme, rank) in [
            (Scheme::Separate, full_rank(problem.shapes[0])),
            (Scheme::LeftShared, (kh * inputs).min(n * kw * out)),
            (Scheme::RightShared, (n * kh * inputs).min(kw * out)),
        ] {
            // One chain may have one shared and n own factors, or one member's own pair; all reach the whole kernel.
            let (factors, _) = solve(scheme, &kernels, rank, 0);
            let energy: f64 = kernels.iter().map(squared).sum();
            prop_assert!(lost(&kernels, &factors) <= STORED * STORED * energy + ROUNDING, "{scheme}");
        }
    }

    #[test]
    fn the_shared_factor_is_orthonormal_and_pythagoras_holds_per_member(problem in problem(), rank in 1..5usize) {
        let kernels = problem.kernels();
        let rank = rank.min(full_rank(problem.shapes[0]));
        let (factors, _) = solve(Scheme::LeftShared, &kernels, rank, 0);
        let Factor::Shared(shared) = &factors.chains[0].factors[0] else { panic!("the first factor is own") };
        let shared = shared.floats();
        for a in 0..rank {
            for b in 0..rank {
                let rows = [a, b].map(|r| shared.index_axis(ndarray::Axis(0), r).mapv(f64::from));
                let product: f64 = (&rows[0] * &rows[1]).sum();
                prop_assert!((product - f64::from(u8::from(a == b))).abs() < STORED);
            }
        }
        for (i, kernel) in kernels.iter().enumerate() {
            let kept = factors.reconstruct(i);
            let parts = squared(&kept) + squared(&(kernel - &kept));
            prop_assert!((squared(kernel) - parts).abs() <= STORED * squared(kernel));
        }
    }

    #[test]
    fn in_a_group_of_one_left_right_and_separate_agree(problem in problem(), rank in 1..5usize) {
        let kernels = &problem.kernels()[..1];
        let rank = rank.min(full_rank(problem.shapes[0]));
        let errors = ONE_SIDED.map(|s| lost(kernels, &solve(s, kernels, rank, 0).0));
        prop_assert!(errors.iter().all(|e| (e - errors[0]).abs() <= STORED * squared(&kernels[0])), "{errors:?}");
    }

    #[test]
    fn identical_members_need_no_more_rank_than_one(problem in problem(), rank in 1..5usize) {
        let one = problem.kernels().remove(0);
        let rank = rank.min(full_rank(problem.shapes[0]));
        let alone = lost(std::slice::from_ref(&one), &solve(Scheme::Separate, std::slice::from_ref(&one), rank, 0).0);
        let copies = vec![one.clone(); 3];
        for scheme in [Scheme::LeftShared, Scheme::RightShared] {
            let together = lost(&copies, &solve(scheme, &copies, rank, 0).0);
            prop_assert!((together - 3.0 * alone).abs() <= 3.0 * STORED * squared(&one), "{scheme}");
        }
    }

    #[test]
    fn left_of_swapped_kernels_is_right(problem in problem(), rank in 1..5usize) {
        let kernels = problem.kernels();
        let rank = rank.min(full_rank(problem.shapes[0]));
        let swapped: Vec<_> = kernels.iter().map(|k| k.clone().permuted_axes([1, 0, 3, 2]).as_standard_layout().into_owned()).collect();
        let left = lost(&kernels, &solve(Scheme::LeftShared, &kernels, rank, 0).0);
        let right = lost(&swapped, &solve(Scheme::RightShared, &swapped, rank, 0).0);
        let energy: f64 = kernels.iter().map(squared).sum();
        prop_assert!((left - right).abs() <= STORED * energy);
    }

    #[test]
    fn member_order_changes_no_member(problem in problem(), rank in 1..5usize) {
        let kernels = problem.kernels();
        let rank = rank.min(full_rank(problem.shapes[0]));
        let reversed: Vec<_> = kernels.iter().rev().cloned().collect();
        for scheme in [Scheme::LeftShared, Scheme::RightShared] {
            // Rank one less than full has a gap almost surely; products are compared, never factors.
            let (a, b) = (solve(scheme, &kernels, rank, 0).0, solve(scheme, &reversed, rank, 0).0);
            let difference = squared(&(&a.reconstruct(0) - &b.reconstruct(kernels.len() - 1)));
            prop_assert!(difference <= 1e-6 * (squared(&kernels[0]) + 1.0), "{scheme}: {difference}");
        }
    }

    #[test]
    fn turns_between_two_chains_never_lose_more(problem in problem(), rank in 2..5usize, split in 0.2..0.8f64) {
        let kernels = problem.kernels();
        for (scheme, start) in [
            (Scheme::BothShared { split }, Scheme::LeftShared),
            (Scheme::PartlyCoupled { split }, Scheme::RightShared),
        ] {
            prop_assume!(Form::from(scheme).ranks(rank).iter().all(|&r| r <= full_rank(problem.shapes[0])));
            let energy: f64 = kernels.iter().map(squared).sum();
            let errors = [0, 1, 2, 5, 15].map(|k| lost(&kernels, &solve(scheme, &kernels, rank, k).0));
            prop_assert!(errors.windows(2).all(|w| w[1] <= w[0] + STORED * energy), "{errors:?}");
            // The first chain alone, at its own rank, is where the turns started from.
            let first = lost(&kernels, &solve(start, &kernels, Form::from(scheme).ranks(rank)[0], 0).0);
            prop_assert!(errors[4] <= first + STORED * energy);
        }
    }

    #[test]
    fn one_train_for_all_gives_the_mean_and_their_own_the_rest(seed in any::<u64>()) {
        // Members that differ from a common kernel of rank one by kernels of rank one.
        let shape = [5, 4, 3, 3];
        let kernels = Problem { shapes: vec![shape; 4], seed }.kernels();
        let one = |kernel: &Array4<f64>| {
            let kernel = std::slice::from_ref(kernel);
            solve(Scheme::Separate.on(Unfolding::TUCKER), kernel, 1, 0).0.reconstruct(0)
        };
        let common = one(&kernels[0]);
        let kernels: Vec<Array4<f64>> = kernels.iter().map(|k| &common * 4.0 + one(k)).collect();
        let form = Scheme::CoupledTensorTrain { split: 0.5 }.on(Unfolding::TUCKER);
        let (factors, _) = solve(form, &kernels, 2, 60);
        let energy: f64 = kernels.iter().map(squared).sum();
        prop_assert!(lost(&kernels, &factors) < 0.02 * energy, "{} of {energy}", lost(&kernels, &factors));
        let stored = factors.chains[0].factors.iter().all(|f| matches!(f, Factor::Shared(_)));
        prop_assert!(stored && factors.chains[1].factors.iter().all(|f| matches!(f, Factor::Own(_))));
        // All of the rank for the common train: every member gets the same kernel.
        let all = Scheme::CoupledTensorTrain { split: 1.0 }.on(Unfolding::TUCKER);
        let (factors, predicted) = solve(all, &kernels, 5, 0);
        let mean = kernels.iter().fold(Array4::<f64>::zeros(shape), |sum, k| sum + k) / 4.0;
        prop_assert!(squared(&(factors.reconstruct(3) - mean)) < STORED * energy);
        let found = lost(&kernels, &factors);
        prop_assert!((found - predicted).abs() < STORED * energy, "{found} {predicted}");
    }

    #[test]
    fn the_formula_counts_what_is_stored(problem in problem(), rank in 2..5usize) {
        let kernels = problem.kernels();
        for form in forms().filter(|f| fits(*f, rank, problem.shapes[0])) {
            let (factors, _) = solve(form, &kernels, rank, 1);
            prop_assert_eq!(factors.parameters(), parameters(&form.chains(), &form.ranks(rank), &problem.shapes), "{}", form);
        }
    }
}

#[test]
fn members_of_rjsvd_1_may_read_fewer_channels() {
    let problem = Problem { shapes: vec![[6, 3, 3, 3], [6, 6, 3, 3], [6, 6, 3, 3]], seed: 3 };
    let kernels = problem.kernels();
    let (factors, predicted) = solve(Scheme::RightSharedWithFirst, &kernels, 7, 0);
    let energy: f64 = kernels.iter().map(squared).sum();
    assert!((lost(&kernels, &factors) - predicted).abs() <= STORED * energy);
    assert_eq!(factors.reconstruct(0).dim(), (6, 3, 3, 3));
    // Cut twice, each first factor has its own input's rank.
    let form = Scheme::RightSharedWithFirst.on(Unfolding::TUCKER);
    let (factors, _) = solve(form, &kernels, 5, 0);
    assert_eq!(factors.parameters(), parameters(&form.chains(), &form.ranks(5), &problem.shapes));
    assert_eq!([0, 1].map(|i| factors.chains[0].factors[0].of(i).dim().0), [3, 5]);
}

#[test]
fn splits_of_zero_and_one_are_rjsvd_2_and_ljsvd() {
    let chains = |scheme: Scheme| Form::from(scheme).chains();
    assert_eq!(chains(Scheme::BothShared { split: 0.0 }), chains(Scheme::RightShared));
    assert_eq!(chains(Scheme::BothShared { split: 1.0 }), chains(Scheme::LeftShared));
}

#[test]
fn composition_follows_its_definition() {
    let first = Array4::from_shape_fn((2, 1, 2, 1), |(m, _, y, _)| (1 + m + 2 * y) as f64);
    let second = Array4::from_shape_fn((1, 2, 1, 2), |(_, m, _, x)| (1 + 3 * m + x) as f64);
    // W[0, 0, y, x] = Σₘ second[0, m, 0, x] · first[m, 0, y, 0]
    let expected = Array4::from_shape_vec((1, 1, 2, 2), vec![9.0, 12.0, 19.0, 26.0]).unwrap();
    assert_eq!(compose(first.view(), second.view()), expected);
}

/// Moments of drawn inputs of a kernel with `n` columns, correlated and with a mean.
fn moment(columns: usize, rows: usize, seed: u64) -> Moment {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut normal = || -> f32 { StandardNormal.sample(&mut rng) };
    let mix = Array2::from_shape_simple_fn((columns, columns), &mut normal);
    let x = Array2::from_shape_simple_fn((rows, columns), &mut normal).dot(&mix) + 0.5;
    let mut moment = Moment::new(columns, 0);
    moment.add(x.view(), None);
    moment
}

fn covariance(moment: &Moment) -> Array2<f64> {
    moment.covariance(&(0..moment.mean().len()).collect::<Vec<_>>())
}

/// `tr Dᵀ Σ D`: the error of the output in the norm of a moment.
fn seen(difference: &Array4<f64>, moment: &Moment) -> f64 {
    let sigma = covariance(moment);
    let filters = difference.outer_iter().map(|f| {
        // im2col order: kh, kw, in.
        let row: Vec<f64> = f.permuted_axes([1, 2, 0]).iter().copied().collect();
        let row = Array1::from(row);
        row.dot(&sigma.dot(&row))
    });
    filters.sum()
}

fn solve_seen(
    form: impl Into<Form>,
    kernels: &[Array4<f64>],
    moments: &[Moment],
    rank: usize,
    sweeps: usize,
) -> Factors {
    let form = form.into();
    let seen: Vec<Seen<'_>> = moments.iter().map(Seen::from).collect();
    let analysis = analyse_calibrated(&form.chains(), kernels, &seen, usize::MAX).unwrap();
    factorize_calibrated(&form.chains(), kernels, &seen, &form.ranks(rank), sweeps, &analysis).unwrap().0
}

/// Every way to cut and to share.
fn forms() -> impl Iterator<Item = Form> {
    let coupled = [Scheme::PartlyCoupled { split: 0.5 }, Scheme::CoupledTensorTrain { split: 0.5 }];
    let schemes = [Scheme::Separate, Scheme::LeftShared, Scheme::RightShared, Scheme::BothShared { split: 0.5 }];
    let schemes = schemes.into_iter().chain(coupled);
    let unfoldings = [Unfolding::SPATIAL, Unfolding::FILTER_BANK, Unfolding::POINTWISE_FIRST, Unfolding::TUCKER];
    schemes.flat_map(move |s| unfoldings.into_iter().map(move |u| s.on(u)))
}

/// Whether every chain of a form has matrices large enough for its share of the rank.
fn fits(form: Form, rank: usize, shape: [usize; 4]) -> bool {
    let (rows, columns) = form.unfolding.matrix_shape(shape);
    rank >= form.least_rank() && form.ranks(rank).iter().all(|&r| r <= rows.min(columns))
}

/// Output error of a group, each member counted by its own energy.
fn seen_error(kernels: &[Array4<f64>], moments: &[Moment], factors: &Factors) -> f64 {
    let each = kernels.iter().zip(moments).enumerate();
    each.map(|(i, (k, m))| seen(&(k - &factors.reconstruct(i)), m) / seen(k, m)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() })]

    #[test]
    fn in_the_norm_of_the_inputs_calibrated_factors_lose_no_more_than_plain_ones(problem in problem(), rank in 2..4usize) {
        let kernels = problem.kernels();
        let [_, inputs, kh, kw] = problem.shapes[0];
        let moments: Vec<_> = (0..kernels.len()).map(|i| moment(inputs * kh * kw, 400, problem.seed ^ i as u64)).collect();
        // Two chains have local optima of their own, with and without calibration; their turns are tested below.
        let one = |f: &Form| f.chains().len() == 1 && fits(*f, rank, problem.shapes[0]);
        for scheme in forms().filter(one) {
            let plain = seen_error(&kernels, &moments, &solve(scheme, &kernels, rank, 15).0);
            let calibrated = seen_error(&kernels, &moments, &solve_seen(scheme, &kernels, &moments, rank, 30));
            // A local search where factors are shared: a twentieth is within its luck, and where the plain one is exact the other
            // is still on its way.
            prop_assert!(calibrated <= 1.05 * plain + 1e-3, "{scheme}: {calibrated} against {plain}");
        }
    }

    #[test]
    fn turns_in_the_norm_of_the_inputs_never_lose_more(problem in problem(), rank in 2..4usize) {
        let kernels = problem.kernels();
        let [_, inputs, kh, kw] = problem.shapes[0];
        let moments: Vec<_> = (0..kernels.len()).map(|i| moment(inputs * kh * kw, 400, problem.seed ^ i as u64)).collect();
        for scheme in forms().filter(|f| fits(*f, rank, problem.shapes[0])) {
            let errors = [0, 1, 3, 8].map(|k| seen_error(&kernels, &moments, &solve_seen(scheme, &kernels, &moments, rank, k)));
            prop_assert!(errors.windows(2).all(|w| w[1] <= w[0] * (1.0 + 1e-4) + 1e-6), "{scheme}: {errors:?}");
        }
    }

    #[test]
    fn a_refit_at_full_rank_is_least_squares(seed in any::<u64>()) {
        // y = W*·x + noise for a kernel other than the one decomposed: the refit finds the dense solution.
        let shape = [3, 2, 3, 3];
        let problem = Problem { shapes: vec![shape], seed };
        let kernels = problem.kernels();
        let mut rng = Pcg64Mcg::seed_from_u64(seed ^ 1);
        let mut normal = || -> f32 { StandardNormal.sample(&mut rng) };
        let x = Array2::from_shape_simple_fn((300, 18), &mut normal);
        let y = x.dot(&Array2::from_shape_simple_fn((18, 3), &mut normal)) + Array2::from_shape_simple_fn((300, 3), &mut normal);
        let mut data = Moment::new(18, 3);
        data.add(x.view(), Some(y.view()));
        let (sigma, cross) = (covariance(&data), data.cross_covariance());
        // Dense normal equations by Gauss-Jordan, and what they leave.
        let dense = gauss(sigma.clone(), cross.clone());
        let energy = data.output_covariance().diag().sum();
        let least = (energy - (&dense * &cross).sum()) / energy;
        for (form, rank) in [(Form::from(Scheme::Separate), 6), (Scheme::RightShared.on(Unfolding::TUCKER), 3)] {
            let chains = form.chains();
            let (factors, _) = solve(form, &kernels, rank, 0);
            let mut refit = Refit::new(&chains, &factors, &[(0, shape, Seen::from(&data))]);
            let before = refit.errors()[0];
            refit.improve(200, false).unwrap();
            let after = refit.errors()[0];
            prop_assert!(after <= before && (after - least).abs() < 1e-3, "{form}: {before} {after} {least}");
        }
    }
}

#[test]
fn inputs_that_do_not_correlate_leave_nothing_to_calibrate() {
    // With Σ = I the calibrated optimum of one chain is the plain one.
    let kernels = Problem { shapes: vec![[5, 4, 3, 3]; 3], seed: 11 }.kernels();
    let columns = 36;
    // ±√(rows/2) along one axis a time: mean zero, covariance one.
    let rows = 2 * columns;
    let x = Array2::from_shape_fn((rows, columns), |(r, c)| {
        if r / 2 == c { (rows as f32 / 2.0).sqrt() * (1.0 - 2.0 * (r % 2) as f32) } else { 0.0 }
    });
    let mut white = Moment::new(columns, 0);
    white.add(x.view(), None);
    let moments = vec![white; 3];
    // Cut twice, the plain factors are not the optimum: each side is cut once, the calibrated ones in turns.
    for form in forms().filter(|f| f.chains().len() == 1 && !f.unfolding.twice) {
        // Members count alike by their energies; plainly they count by it. Equal energies make both the same.
        let scaled: Vec<_> = kernels.iter().map(|k| k / squared(k).sqrt()).collect();
        let (plain, calibrated) = (solve(form, &scaled, 3, 0).0, solve_seen(form, &scaled, &moments, 3, 20));
        let difference: f64 =
            (0..3).map(|i| squared(&(&plain.reconstruct(i) - &calibrated.reconstruct(i)))).sum::<f64>();
        assert!(difference < 1e-8, "{form}: {difference}");
    }
}

#[test]
fn an_output_that_does_not_matter_is_given_up_first() {
    let kernels = Problem { shapes: vec![[4, 5, 3, 3]], seed: 5 }.kernels();
    let data = moment(45, 600, 3);
    let mut g = Array2::<f64>::eye(4);
    g[[2, 2]] = 1e-4;
    let norm = OutputNorm::new(&g, 0.0).unwrap();
    let channel = |factors: &Factors, o: usize| {
        let lost = &kernels[0] - &factors.reconstruct(0);
        let one = |k: &Array4<f64>| k.slice(ndarray::s![o..o + 1, .., .., ..]).to_owned();
        seen(&one(&lost), &data) / seen(&one(&kernels[0]), &data)
    };
    let fit = |seen: Seen<'_>| {
        let chains = Scheme::Separate.on(Unfolding::FILTER_BANK).chains();
        let analysis = analyse_calibrated(&chains, &kernels[..], &[seen], usize::MAX).unwrap();
        factorize_calibrated(&chains, &kernels[..], &[seen], &[3], 3, &analysis).unwrap().0
    };
    let weighted = fit(Seen { moment: &data, output: Some(&norm) });
    // Three of four directions: the fourth is the channel that does not matter.
    for o in [0, 1, 3] {
        assert!(channel(&weighted, o) < 1e-3, "{o}: {}", channel(&weighted, o));
    }
    assert!(channel(&weighted, 2) > channel(&fit(Seen::from(&data)), 2));
}

/// Solves `A·X = B` by elimination, the textbook's way.
fn gauss(mut a: Array2<f64>, mut b: Array2<f64>) -> Array2<f64> {
    for i in 0..a.nrows() {
        let pivot = a[[i, i]];
        a.row_mut(i).mapv_inplace(|v| v / pivot);
        b.row_mut(i).mapv_inplace(|v| v / pivot);
        for j in (0..a.nrows()).filter(|&j| j != i) {
            let factor = a[[j, i]];
            let (from_a, from_b) = (a.row(i).to_owned(), b.row(i).to_owned());
            a.row_mut(j).scaled_add(-factor, &from_a);
            b.row_mut(j).scaled_add(-factor, &from_b);
        }
    }
    b
}
