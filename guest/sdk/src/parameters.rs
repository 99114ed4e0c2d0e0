//! A module's card, and the parameters that it takes.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

/// The value of a parameter. In an [`About`] it is the default, and its variant is the kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Yes or no.
    Flag(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// Any text.
    Text(String),
}

/// A parameter that a module takes.
#[derive(Clone, Debug)]
pub struct ParameterSpec {
    /// Lower kebab-case.
    pub name: &'static str,
    /// One sentence for the user, with the unit.
    pub doc: &'static str,
    /// The default, and so the kind. (A text defaults to the empty one.)
    pub default: Value,
    /// The least value allowed.
    pub minimum: Option<f64>,
    /// The greatest value allowed.
    pub maximum: Option<f64>,
}

impl ParameterSpec {
    /// A whole number within bounds.
    pub const fn integer(name: &'static str, doc: &'static str, default: i64, minimum: i64, maximum: i64) -> Self {
        ParameterSpec {
            name,
            doc,
            default: Value::Integer(default),
            minimum: Some(minimum as f64),
            maximum: Some(maximum as f64),
        }
    }

    /// A number within bounds.
    pub const fn number(name: &'static str, doc: &'static str, default: f64, minimum: f64, maximum: f64) -> Self {
        ParameterSpec { name, doc, default: Value::Number(default), minimum: Some(minimum), maximum: Some(maximum) }
    }

    /// Yes or no.
    pub const fn flag(name: &'static str, doc: &'static str, default: bool) -> Self {
        ParameterSpec { name, doc, default: Value::Flag(default), minimum: None, maximum: None }
    }
}

/// A module's card.
#[derive(Clone, Debug)]
pub struct About {
    /// Lower kebab-case, as users type it.
    pub name: &'static str,
    /// The module's version (SemVer).
    pub version: &'static str,
    /// One line: what it is good at, and the paper that it comes from.
    pub summary: &'static str,
    /// The parameters it takes.
    pub parameters: &'static [ParameterSpec],
}

impl About {
    /// A card without parameters.
    pub const fn new(name: &'static str, version: &'static str, summary: &'static str) -> Self {
        About { name, version, summary, parameters: &[] }
    }

    /// The same card with parameters.
    pub const fn with_parameters(mut self, parameters: &'static [ParameterSpec]) -> Self {
        self.parameters = parameters;
        self
    }
}

/// Why a policy could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The parameter at fault; empty if it is not one.
    pub parameter: String,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl Refusal {
    /// A refusal because of a parameter.
    pub fn of(parameter: &str, message: impl Into<String>) -> Self {
        Refusal { parameter: parameter.to_string(), message: message.into() }
    }
}

/// The parameters of one policy: what the user set, and the defaults for the rest.
#[derive(Clone, Debug)]
pub struct Parameters(Vec<(&'static str, Value)>);

impl Parameters {
    /// Every default of a card.
    pub fn defaults(about: &About) -> Self {
        Parameters(about.parameters.iter().map(|spec| (spec.name, spec.default.clone())).collect())
    }

    /// The defaults of a card with `set` over them, checked for names, kinds and bounds.
    ///
    /// # Errors
    /// A [`Refusal`] that names the parameter and what it may be.
    pub fn of(about: &About, set: impl IntoIterator<Item = (String, Value)>) -> Result<Self, Refusal> {
        let mut all = Self::defaults(about);
        for (name, value) in set {
            let Some(at) = about.parameters.iter().position(|spec| spec.name == name) else {
                let known: Vec<_> = about.parameters.iter().map(|spec| spec.name).collect();
                let known =
                    if known.is_empty() { "takes none".to_string() } else { format!("takes {}", known.join(", ")) };
                return Err(Refusal::of(&name, format!("unknown parameter; {} {known}", about.name)));
            };
            let spec = &about.parameters[at];
            let size = match (&spec.default, &value) {
                (Value::Flag(_), Value::Flag(_)) | (Value::Text(_), Value::Text(_)) => None,
                (Value::Integer(_), Value::Integer(n)) => Some(*n as f64),
                (Value::Number(_), Value::Number(x)) => Some(*x),
                (default, _) => {
                    return Err(Refusal::of(&name, format!("must be of the kind of its default, {default:?}")));
                }
            };
            if let Some(size) = size {
                let below = spec.minimum.is_some_and(|least| size < least);
                let above = spec.maximum.is_some_and(|most| size > most);
                if below || above || size.is_nan() {
                    let bound = |b: Option<f64>| b.map_or("unbounded".to_string(), |b| b.to_string());
                    let (least, most) = (bound(spec.minimum), bound(spec.maximum));
                    return Err(Refusal::of(&name, format!("is {size}; it must be from {least} to {most}")));
                }
            }
            all.0[at].1 = value;
        }
        Ok(all)
    }

    fn get(&self, name: &str) -> &Value {
        match self.0.iter().find(|(known, _)| *known == name) {
            Some((_, value)) => value,
            None => panic!("the card lists no parameter {name:?}: add it to About::parameters"),
        }
    }

    /// A whole number.
    ///
    /// # Panics
    /// As all of these: if the module's card has no such parameter of this kind.
    pub fn integer(&self, name: &str) -> i64 {
        match self.get(name) {
            Value::Integer(n) => *n,
            other => panic!("parameter {name:?} is {other:?}, not a whole number"),
        }
    }

    /// A number.
    pub fn number(&self, name: &str) -> f64 {
        match self.get(name) {
            Value::Number(x) => *x,
            other => panic!("parameter {name:?} is {other:?}, not a number"),
        }
    }

    /// Yes or no.
    pub fn flag(&self, name: &str) -> bool {
        match self.get(name) {
            Value::Flag(yes) => *yes,
            other => panic!("parameter {name:?} is {other:?}, not a flag"),
        }
    }

    /// A text.
    pub fn text(&self, name: &str) -> &str {
        match self.get(name) {
            Value::Text(text) => text,
            other => panic!("parameter {name:?} is {other:?}, not a text"),
        }
    }
}
