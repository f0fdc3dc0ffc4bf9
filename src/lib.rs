//! A compiler pass over ONNX files that makes convolutional networks smaller: it finds the convolutions that play the same
//! role in repeated blocks, decomposes their kernels **jointly**, rewrites each into a shared projection and a small
//! convolution of its own, and proves with tract that the result computes what was decided.
//!
//! ```text
//! argv ─ cli ─▶ Options
//! in.onnx ─▶ onnx::Model ─▶ onnx::Graph ─▶ onnx::Conv ─▶ group ─▶ factor ─▶ plan ─▶ rewrite ─▶ Model'
//!                                            └ SkipReason                                         │
//!                            Model, reference, Model' ─▶ verify ─▶ report ◀──────────────────────┘─▶ out.onnx
//! ```
//! Data flows one way: a stage is a function from values to a value, and a refusal is data that names its node.
//! `onnx` reads and checks the file, [`factor`] holds the mathematics of the decomposition and knows no ONNX.
//!
//! The method is that of Chen, Zhou, Sun and Huang, *Joint Matrix Decomposition for Deep Convolutional Neural Networks
//! Compression* (arXiv 2107.04386).
//!
//! # Example
#![cfg_attr(feature = "verify", doc = "```")]
#![cfg_attr(not(feature = "verify"), doc = "```ignore")]
//! use onnx_jmd::{Model, Options, PlanOptions, RankPolicy, Scheme, compile};
//!
//! let model = Model::open("fixtures/fashion-resnet.onnx")?;
//! let plan = PlanOptions { scheme: Scheme::LeftShared.into(), policy: RankPolicy::Ratio(4.0), ..PlanOptions::default() };
//! let done = compile(&model, &Options { plan, ..Options::default() }, &|_| ())?;
//! assert!(done.report.totals.parameters.ratio >= 4.0);
//! let verification = done.report.verification.expect("verified by default");
//! assert!(verification.rewrite_error <= verification.rewrite_tolerance);
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("small.onnx");
//! done.model.expect("not a dry run").save(&path)?;
//! # Ok::<(), onnx_jmd::Error>(())
//! ```
//!
//! Stage by stage the same is [`find_groups`], [`Plan::build`], [`apply`], [`verify()`] and [`Report`].

#![cfg_attr(
    not(feature = "tune"),
    allow(dead_code, reason = "calibration plans and amends, tuning trains, both run models")
)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub, clippy::missing_errors_doc)]
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]
#![warn(clippy::exit)]

mod error;
mod onnx;
#[cfg(feature = "verify")]
mod progress;

pub mod factor;

mod group;
mod portions;
mod ranks;

mod plan;
mod rewrite;

mod inspect;
mod report;

#[cfg(feature = "verify")]
mod calibrate;
#[cfg(feature = "verify")]
mod compare;
#[cfg(feature = "verify")]
mod compile;
#[cfg(feature = "tune")]
mod distil;
#[cfg(feature = "verify")]
mod gates;
#[cfg(feature = "verify")]
mod gradient;
#[cfg(feature = "verify")]
mod images;
#[cfg(feature = "verify")]
mod make;
#[cfg(feature = "verify")]
mod options;
#[cfg(feature = "verify")]
mod origin;
#[cfg(feature = "verify")]
mod picture;
#[cfg(feature = "verify")]
mod runtime;
#[cfg(feature = "verify")]
mod sealed;
#[cfg(feature = "verify")]
mod search;
#[cfg(feature = "verify")]
mod steps;
#[cfg(feature = "tune")]
mod tune;
#[cfg(feature = "verify")]
mod verify;

#[cfg(feature = "verify")]
pub use calibrate::CalibrationInputs;
#[cfg(feature = "verify")]
pub use compare::{COMPARISON_VERSION, CompareOptions, Comparison, OutputRow, VerifyOptions, compare, score};
#[cfg(feature = "verify")]
pub use compile::{Compilation, compile};
#[cfg(feature = "tune")]
pub use distil::{Distillation, TUNING_VERSION, TuningReport, tune};
pub use error::{Error, Result};
pub use factor::{Form, Scheme, Unfolding};
#[cfg(feature = "verify")]
pub use gates::Gates;
pub use group::{Group, GroupBy, GroupOptions, Grouping, Protocol, RepeatedBlock, Skipped, Stream, find_groups};
#[cfg(feature = "verify")]
pub use images::{Images, Layout, Preprocessing, Preset};
pub use inspect::{INSPECTION_VERSION, Inspection, inspect};
pub use onnx::{Conv, InputShape, Model, SkipReason, check_writable, write_whole, writing};
#[cfg(feature = "verify")]
pub use options::Options;
#[cfg(feature = "tune")]
pub use options::Tutoring;
#[cfg(feature = "verify")]
pub use origin::check;
#[cfg(feature = "verify")]
pub use picture::Pictures;
pub use plan::{Alternative, GroupPlan, Kept, Plan, PlanOptions, RankPolicy, SchemeChoice};
#[cfg(feature = "verify")]
pub use plan::{PlanFile, PlannedCalibration, Replay};
pub use report::{
    AgreementRow, Approximation, BlockRow, CalibrationRow, Change, GroupRow, LeftRow, Parts, REPORT_VERSION, Report,
    Score, Totals, Tuning, TuningRow, TuningStep, Verification,
};
pub use rewrite::{Compiled, apply, reference};
#[cfg(feature = "tune")]
pub use tune::{Budget, Stop, TuneOptions};
#[cfg(feature = "verify")]
pub use verify::{REWRITE_TOLERANCE, verify};

/// The README's example, compiled.
#[cfg(all(doctest, feature = "verify"))]
#[doc = include_str!("../README.md")]
struct Readme;
