pub mod judge;
pub mod ledger;
pub mod name;
pub mod registry;
pub mod route;
pub mod rules;
pub mod settings;
pub mod telemetry;
