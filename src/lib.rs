pub mod ledger;
pub mod name;
pub mod route;
pub mod telemetry;
