import XCTest

@testable import LaMamba

final class LoopTests: XCTestCase {
    let vectors = try! Vectors.load()

    /// Graphs that take four images: the batch is filled up, the surplus dropped, and no image depends on it.
    func testFixedBatch() throws {
        let loop = vectors.loops[0]
        let run = loop.run(vectors.alphas_cumprod)
        let free = try run.sample(with: ToyStep(nullLabel: loop.null_label)) { _ in true }
        let step = ToyStep(nullLabel: loop.null_label, batch: 4)
        var previews: [Int] = []
        let fixed = try run.sample(with: step) { progress in
            XCTAssertEqual(progress.images, 0..<3)
            previews.append(progress.preview.count)
            return true
        }
        XCTAssertEqual(fixed, free)
        XCTAssertEqual(step.calls.map(\.labels), Array(repeating: loop.labels + [loop.labels[2]], count: loop.steps))
        XCTAssertEqual(previews, Array(repeating: 3 * 6, count: loop.steps))
    }

    /// Cancelled in the second batch: the first one is kept.
    func testCancel() throws {
        let loop = vectors.loops[0]
        let step = ToyStep(nullLabel: loop.null_label)
        let kept = try loop.run(vectors.alphas_cumprod).sample(with: step) { $0.images.lowerBound == 0 || $0.step < 2 }
        XCTAssertEqual(kept.count, loop.batch)
        XCTAssertEqual(step.calls.count, loop.steps + 2)
        let none = try loop.run(vectors.alphas_cumprod).sample(with: step) { $0.step < $0.steps }
        XCTAssertEqual(none.count, 0, "cancelling after the last step drops the batch")
    }

    func testPreviewIsDenoised() throws {
        let loop = vectors.loops[1]
        var previews: [[Float]] = []
        _ = try loop.run(vectors.alphas_cumprod).sample(with: ToyStep(nullLabel: loop.null_label)) {
            previews.append($0.preview)
            return true
        }
        for (preview, call) in zip(previews, loop.trace) { near(preview, call.denoised.flatMap { $0 }) }
        XCTAssertEqual(previews.count, loop.trace.count)
    }

    func testNotFinite() throws {
        try refused(vectors.loops[0], "step 2 of 4 gave values that are not finite") { call, x in
            if call == 2 { x[5] = .nan }
        }
    }

    func testFlat() throws {
        try refused(vectors.loops[0], "image 6 is flat") { call, x in  // the second of the first batch
            if call == 4 { x.replaceSubrange(6..<12, with: repeatElement(0.25, count: 6)) }
        }
    }

    func testRequests() throws {
        let manifest = try ModelBundle(at: bundled, verifyingFiles: false).manifest
        let run = try manifest.run(of: Request(labels: [0, 1], seed: 3))
        XCTAssertEqual(run.table.count, manifest.defaults.steps)
        XCTAssertEqual(run.table.allSatisfy(\.guided), manifest.defaults.guidance != 1)
        let wrong: [((inout Request) -> Void, String)] = [
            ({ $0.labels = [manifest.model.numClasses] }, "there is no class"),
            ({ $0.steps = 0 }, "steps must be 1 to 1000"), ({ $0.steps = 1001 }, "steps must be 1 to 1000"),
            ({ $0.strength = -1 }, "strength"), ({ $0.strength = .nan }, "strength"),
            ({ $0.strength = 1e300 }, "strength"),
            ({ $0.batch = 0 }, "batch"), ({ $0.first = .max }, "32 bits"),
        ]
        for (spoil, message) in wrong {
            var request = Request(labels: [0, 1], seed: 3)
            spoil(&request)
            XCTAssertThrowsError(try manifest.run(of: request)) { XCTAssert("\($0)".contains(message), "\($0)") }
        }
    }

    private func refused(
        _ loop: Vectors.Loop, _ message: String, _ spoil: @escaping (Int, inout [Float]) -> Void
    ) throws {
        let step = ToyStep(nullLabel: loop.null_label)
        step.spoil = { [unowned step] in spoil(step.calls.count + 1, &$0) }
        XCTAssertThrowsError(try loop.run(vectors.alphas_cumprod).sample(with: step) { _ in true }) {
            XCTAssert("\($0)".hasPrefix(message), "\($0)")
        }
    }
}
