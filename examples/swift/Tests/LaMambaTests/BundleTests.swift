import XCTest

@testable import LaMamba

let bundled = repository.appendingPathComponent("lamamba/bundled/emoji.lamamba")

final class BundleTests: XCTestCase {
    var folder = URL(fileURLWithPath: "")

    override func setUpWithError() throws {
        let files = FileManager.default
        folder = files.temporaryDirectory.appendingPathComponent("\(UUID().uuidString)/emoji.lamamba")
        try files.createDirectory(at: folder.deletingLastPathComponent(), withIntermediateDirectories: true)
        try files.copyItem(at: bundled, to: folder)
    }

    override func tearDownWithError() throws {
        try FileManager.default.removeItem(at: folder.deletingLastPathComponent())
    }

    func testBundledModel() throws {
        let manifest = try ModelBundle(at: folder).manifest
        XCTAssertEqual(manifest.name, "emoji")
        let tables = try XCTUnwrap(manifest.tables)
        XCTAssertGreaterThan(tables.count, 0)
        for table in tables {
            let alphas = manifest.schedule.alphasCumprod
            let timesteps = spacedTimesteps(total: alphas.count, steps: table.steps)
            agree(rows(alphas, sampler: table.sampler, timesteps: timesteps, clip: manifest.sample.clip), table.rows)
        }
        XCTAssertThrowsError(try ModelBundle(at: folder).graph(guided: true)) {
            XCTAssert("\($0)".contains("lamamba-export -t coreml"), "\($0)")
        }
    }

    /// Against digests of hashlib, in one piece and in two, at the lengths where padding changes.
    func testSHA256() {
        let expected = [
            0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            55: "463eb28e72f82e0a96c0a4cc53690c571281131f672aa229e0d45ae59b598b59",
            56: "da2ae4d6b36748f2a318f23e7ab1dfdf45acdc9d049bd80e59de82a60895f562",
            64: "fdeab9acf3710362bd2658cdc9a29e8f9c757fcf9811603a8c447cd1d9151108",
            1000: "4e4c294b331f7a2099a379bec34b9f9fc03dc46ab465d998f4d683da53487e6d",
        ]
        for (count, digest) in expected {
            let data = Data((0..<count).map { UInt8($0 % 251) })
            for cut in [0, count / 3] {
                var hash = SHA256()
                hash.update(data: data.prefix(cut))
                hash.update(data: data.suffix(count - cut))
                XCTAssertEqual(hexadecimal(hash.finalize()), digest)
            }
        }
    }

    func testGraphs() throws {
        try rewrite {
            $0["target"] = "coreml"
            $0["batch"] = 2
            $0["graphs"] = [
                "unguided": ["file": "step.mlpackage", "function": "step"],
                "guided": ["file": "step.mlpackage", "function": "step_guided"],
            ]
            var files = $0["files"] as! [String: Any]
            files["step.mlpackage/Manifest.json"] = files["config.json"]
            $0["files"] = files
        }
        let package = folder.appendingPathComponent("step.mlpackage")
        try FileManager.default.createDirectory(at: package, withIntermediateDirectories: true)
        try FileManager.default.copyItem(
            at: folder.appendingPathComponent("config.json"), to: package.appendingPathComponent("Manifest.json"))
        let bundle = try ModelBundle(at: folder, verifyingFiles: false)
        XCTAssertEqual(bundle.manifest.batch, 2)
        XCTAssertEqual(try bundle.graph(guided: true).function, "step_guided")
        XCTAssertEqual(try bundle.graph(guided: false).file.path, package.path)
    }

    func testDamage() throws {
        let weights = folder.appendingPathComponent("model.safetensors")
        var bytes = try Data(contentsOf: weights)
        bytes[bytes.count / 2] ^= 1
        try bytes.write(to: weights)
        refused("model.safetensors is damaged: its SHA-256 differs")
        XCTAssertNoThrow(try ModelBundle(at: folder, verifyingFiles: false))
        try bytes.dropLast().write(to: weights)
        refused("model.safetensors is damaged: \(bytes.count - 1) bytes")
        try FileManager.default.removeItem(at: weights)
        refused("has no model.safetensors")
    }

    func testManifestDamage() throws {
        let path = folder.appendingPathComponent("manifest.json")
        let text = try String(contentsOf: path, encoding: .utf8)
        try Data(text.replacingOccurrences(of: "\"emoji\"", with: "\"emojj\"").utf8).write(to: path)
        refused("its digest differs")
        try Data(text.utf8.dropLast(9)).write(to: path)
        refused("no JSON object")
        try FileManager.default.removeItem(at: path)
        refused("has no manifest.json")
    }

    func testForged() throws {
        let wrong: [(String, ((inout [String: Any]) -> Void))] = [
            ("this is no bundle", { $0["format"] = "zip" }),
            ("update this player", { $0["version"] = 2 }),
            ("export it again", { $0["version"] = 0 }),
            ("version in manifest.json is of another type", { $0["version"] = "1" }),
            ("lacks license", { $0["license"] = nil }),
            ("control characters", { $0["name"] = "a\u{7}b" }),
            ("defaults.sampler in manifest.json is impossible", { set(&$0, "defaults", "sampler", "euler") }),
            ("defaults.steps must be 1 to 1000", { set(&$0, "defaults", "steps", 1001) }),
            ("defaults.guidance", { set(&$0, "defaults", "guidance", -0.5) }),
            ("sample.clip", { set(&$0, "sample", "clip", 0) }),
            ("sample.latent_scale", { set(&$0, "sample", "latent_scale", 1e300) }),
            ("sample.shape", { set(&$0, "sample", "shape", [3, 64, 64]) }),
            ("an image has 3 channels", fourChannels),
            ("is impossible", huge),
            ("model.num_classes", { set(&$0, "model", "num_classes", 1 << 40) }),
            ("class_names", { $0["class_names"] = ["one"] }),
            ("alphas_cumprod", { set(&$0, "schedule", "alphas_cumprod", [0.5, 0.6]) }),
            ("alphas_cumprod", { set(&$0, "schedule", "alphas_cumprod", [Double]()) }),
            ("batch must be at least 1", { $0["batch"] = 0 }),
            ("sha256", { set(&$0, "files", "config.json", ["size": 3, "sha256": String(repeating: "A", count: 64)]) }),
        ]
        for (message, spoil) in wrong {
            try rewrite(spoil)
            refused(message)
        }
    }

    func testPaths() throws {
        let wrong = [
            "/etc/passwd", "../up", "a/../b", "a//b", "a/", "", ".", "a\\b", "C:b", "./a", "a/\u{301}/..", "\\\u{301}",
        ]
        for path in wrong { XCTAssertFalse(isPlain(path), path) }
        for path in ["a", "a/b.c", "..a/b..", "naïve/描述"] { XCTAssertTrue(isPlain(path), path) }
        try rewrite { set(&$0, "files", "../up", ["size": 0, "sha256": String(repeating: "0", count: 64)]) }
        refused("no plain relative path")
    }

    func testLinks() throws {
        let files = FileManager.default
        let weights = folder.appendingPathComponent("model.safetensors")
        let elsewhere = folder.appendingPathComponent("../weights")
        try files.moveItem(at: weights, to: elsewhere)
        try files.createSymbolicLink(at: weights, withDestinationURL: elsewhere)
        refused("is a link to outside")
        try files.removeItem(at: weights)
        try files.moveItem(at: elsewhere, to: folder.appendingPathComponent("inside"))
        try files.createSymbolicLink(atPath: weights.path, withDestinationPath: "inside")
        XCTAssertNoThrow(try ModelBundle(at: folder, verifyingFiles: false))
    }

    /// A writer was stopped between its two renames.
    func testInterruptedReplacement() throws {
        try FileManager.default.moveItem(at: folder, to: folder.appendingPathComponent("../.emoji.lamamba.previous"))
        XCTAssertEqual(try ModelBundle(at: folder, verifyingFiles: false).manifest.name, "emoji")
    }

    private func refused(_ message: String, line: UInt = #line) {
        XCTAssertThrowsError(try ModelBundle(at: folder), line: line) {
            XCTAssert($0 is Refusal && "\($0)".contains(message), "\($0)", line: line)
            XCTAssertFalse("\($0)".contains("\n"), line: line)
        }
    }

    /// Write a changed manifest with a digest that fits it.
    private func rewrite(_ change: (inout [String: Any]) -> Void) throws {
        let raw = try Data(contentsOf: bundled.appendingPathComponent("manifest.json"))
        var manifest = try XCTUnwrap(JSONSerialization.jsonObject(with: raw) as? [String: Any])
        manifest["digest"] = nil
        change(&manifest)
        var text = try JSONSerialization.data(withJSONObject: manifest)
        text.removeLast()
        text += Data(",\"digest\":\"\"}".utf8)
        let digest = try XCTUnwrap(Manifest.digest(of: text))
        text = text.dropLast(2) + Data("\(digest)\"}".utf8)
        try text.write(to: folder.appendingPathComponent("manifest.json"))
    }
}

private func fourChannels(_ manifest: inout [String: Any]) {
    set(&manifest, "sample", "shape", [4, 32, 32])
    set(&manifest, "model", "in_channels", 4)
}

private func huge(_ manifest: inout [String: Any]) {
    set(&manifest, "sample", "shape", [3, 1 << 40, 1 << 40])
    set(&manifest, "model", "input_size", 1 << 40)
}

/// Set a value one level down.
private func set(_ manifest: inout [String: Any], _ outer: String, _ inner: String, _ value: Any) {
    var object = manifest[outer] as! [String: Any]
    object[inner] = value
    manifest[outer] = object
}
