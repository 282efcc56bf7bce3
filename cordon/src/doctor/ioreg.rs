//! The tree that `ioreg -l -w0` prints.
//!
//! A node is a line with `+-o NAME  <class CLASS, …>`, deeper the further right it stands. Its properties
//! follow as `"KEY" = VALUE`.

/// One node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) class: String,
    depth: usize,
    properties: Vec<(String, String)>,
}

impl Node {
    /// A property, as it is printed, without the quotes of text.
    pub(super) fn property(&self, key: &str) -> Option<&str> {
        let found = self.properties.iter().find(|(known, _)| known == key);
        found.map(|(_, value)| value.trim_matches('"'))
    }
}

/// All nodes, each before those beneath it.
#[derive(Debug)]
pub(super) struct Tree(Vec<Node>);

impl Tree {
    pub(super) fn parse(text: &str) -> Self {
        let mut nodes: Vec<Node> = Vec::new();
        for line in text.lines() {
            if let Some(node) = node(line) {
                nodes.push(node);
            } else if let (Some(last), Some(property)) = (nodes.last_mut(), property(line)) {
                last.properties.push(property);
            }
        }
        Self(nodes)
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.0.iter()
    }

    /// The node above the one at `at` that is of `class`, the nearest first.
    pub(super) fn above(&self, at: usize, class: &str) -> Option<&Node> {
        let mut depth = self.0.get(at)?.depth;
        self.0[..at].iter().rev().find(|node| {
            let is_above = node.depth < depth;
            depth = depth.min(node.depth);
            is_above && node.class == class
        })
    }
}

fn node(line: &str) -> Option<Node> {
    let (before, rest) = line.split_once("+-o ")?;
    let (name, about) = rest.split_once("<class ")?;
    let class = about.split([',', '>']).next().unwrap_or_default();
    Some(Node {
        name: name.trim().to_owned(),
        class: class.trim().to_owned(),
        depth: before.chars().count(),
        properties: Vec::new(),
    })
}

fn property(line: &str) -> Option<(String, String)> {
    let (key, value) = line.split_once(" = ")?;
    let key = key.trim_start_matches([' ', '|']).trim().strip_prefix('"')?.strip_suffix('"')?;
    Some((key.to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"+-o Root  <class IORegistryEntry, id 0x1, retain 9>
  | {
  |   "IOKitBuildVersion" = "x = y"
  | }
  +-o pci-bridge  <class IOPCIDevice, id 0x2>
  | +-o display@0  <class IOPCIDevice, id 0x3>
  | | {
  | |   "assigned-addresses" = <>
  | | }
  | | +-o VFIOUserPCIDriver  <class IOUserService, id 0x4>
  | |     {
  | |       "IOUserClass" = "VFIOUserPCIDriver"
  | |     }
  +-o other  <class IOUserServer, id 0x5>
"#;

    #[test]
    fn nodes_have_their_properties_and_what_is_above_them() {
        let tree = Tree::parse(TEXT);
        let names: Vec<_> = tree.nodes().map(|node| &node.name[..]).collect();
        assert_eq!(names, ["Root", "pci-bridge", "display@0", "VFIOUserPCIDriver", "other"]);
        let root = tree.nodes().next().unwrap();
        assert_eq!(root.property("IOKitBuildVersion"), Some("x = y"));
        let service = tree.nodes().nth(3).unwrap();
        assert_eq!(service.property("IOUserClass"), Some("VFIOUserPCIDriver"));
        let device = tree.above(3, "IOPCIDevice").unwrap();
        assert_eq!(
            (&device.name[..], device.property("assigned-addresses")),
            ("display@0", Some("<>"))
        );
        assert!(tree.above(4, "IOPCIDevice").is_none() && tree.above(0, "IOPCIDevice").is_none());
        assert_eq!(Tree::parse("nonsense\n\"a\" = 1\n").nodes().count(), 0);
    }
}
