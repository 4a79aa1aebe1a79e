pub mod name;
pub mod route;
