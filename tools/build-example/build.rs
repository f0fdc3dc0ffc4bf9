//! Compresses the network at build time, again only if it, or what is asked of it, has changed.

use onnx_jmd::{Error, Model, Options, PlanOptions, RankPolicy, check, compile};
use std::path::Path;

const NETWORK: &str = "../../fixtures/fashion-resnet.onnx";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={NETWORK}");
    println!("cargo::rerun-if-changed=build.rs");
    let small = Path::new(&std::env::var("OUT_DIR")?).join("small.onnx");
    let plan = PlanOptions { policy: RankPolicy::Ratio(4.0), ..PlanOptions::default() };
    let options = Options { plan, ..Options::default() };
    let model = Model::open(NETWORK)?;
    // Another profile, or a build script built again, asks for the same file.
    match check(&model, &options, &small, false) {
        Ok(()) => return Ok(()),
        Err(Error::Stale { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let done = compile(&model, &options, &|_| ())?;
    done.model.ok_or("not a dry run")?.save(&small)?;
    Ok(())
}
