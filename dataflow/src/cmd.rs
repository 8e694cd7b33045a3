//! One module a subcommand. Each has `run(args, config)`.
