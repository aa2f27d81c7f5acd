//! The program `postrider`: control plane and agent in one process on an embedded store file.

mod catalogue;
mod demo;
mod receiver;
mod serve;

use std::ffi::OsString;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What `postrider` alone says.
const USAGE: &str = "\
Postrider sends webhooks.

Usage: postrider <COMMAND> [OPTIONS]

Commands:
  serve  Serves gRPC and delivers, with all state in one folder
  demo   Shows it: serves, receives its own webhooks and prints each request as it arrives

`postrider <COMMAND> --help` lists the options of a command.
";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments
        .next()
        .and_then(|text| text.into_string().ok())
        .unwrap_or_default();
    let arguments: Vec<OsString> = arguments.collect();
    let ended = match command.as_str() {
        "serve" => serve::main(arguments),
        "demo" => demo::main(arguments),
        "--help" | "-h" | "help" => {
            print!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        "--version" | "-V" => {
            println!("postrider {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprint!("{USAGE}");
            Ok(ExitCode::from(postrider_common::config::EXIT_USAGE))
        }
    };
    ended.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
