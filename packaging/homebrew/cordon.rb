# The formula, with three places that `cargo xtask package` puts values in.
class Cordon < Formula
  desc "PCI passthrough with every function in a sandboxed process of its own"
  url "@URL@"
  version "@VERSION@"
  sha256 "@SHA256@"
  license any_of: ["Apache-2.0", "BSD-3-Clause"]

  depends_on "rust" => :build

  def install
    system "cargo", "build", "--release", "--locked",
           "-p", "cordon-cli", "-p", "cordon-device-proc", "-p", "cordon-dext-sim", "--bins"
    bin.install "target/release/cordon"
    # `cordon` looks for them in ../libexec/cordon.
    (prefix/"libexec/cordon").install(
      ["device-proc", "faulty-device-proc", "dext-sim", "sandbox-probe"].map { |name| "target/release/#{name}" },
    )
    system bin/"cordon", "generate", "generated"
    man1.install Dir["generated/*.1"]
    bash_completion.install "generated/cordon.bash" => "cordon"
    zsh_completion.install "generated/_cordon"
    fish_completion.install "generated/cordon.fish"
    doc.install "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "docs"
    prefix.install "LICENSE-APACHE", "LICENSE-BSD-3-Clause"
  end

  def caveats
    <<~EOS
      Devices are reached through a driver extension that is installed by itself, and device-proc
      has to be signed for it: packaging/macos/sign.sh in the sources, docs/macos.md. `cordon doctor`
      says what is missing.
    EOS
  end

  test do
    assert_equal "cordon #{version}", shell_output("#{bin}/cordon --version").strip
    system bin/"cordon", "demo"
  end
end
