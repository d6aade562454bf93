//! Each repository as an ordinary OCI image layout, which other tools read and write.

pub(in crate::store) mod adopt;
pub(in crate::store) mod index_json;
pub(in crate::store) mod render;
