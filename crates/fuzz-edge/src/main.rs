//! `fuzz-edge [INPUTS [SEED [TARGET]]]`: a million inputs for each target by default.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::io::Write as _;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let argument = |index| std::env::args().nth(index);
    let number = |index, default| argument(index).map_or(Ok(default), |text| text.parse::<u64>());
    let (inputs, seed, only) = (number(1, 1_000_000)?, number(2, 1)?, argument(3));
    let wanted = |name: &str| only.as_ref().is_none_or(|only| only == name);
    for target in fuzz_edge::targets()
        .iter()
        .filter(|target| wanted(target.name))
    {
        let began = Instant::now();
        let count = target.run(inputs, seed, |count| {
            print!(
                "\r{:<16} {:>9} of {inputs}, {:>9} taken",
                target.name, count.inputs, count.taken
            );
            let _ = std::io::stdout().flush();
        });
        println!(
            "\r{:<16} {:>9} inputs, {:>9} taken, {:>7.1?} the longest, {:>5.0?} in all, no panic",
            target.name,
            count.inputs,
            count.taken,
            count.longest,
            began.elapsed()
        );
    }
    Ok(())
}
