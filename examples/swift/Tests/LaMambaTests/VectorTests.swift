import XCTest

@testable import LaMamba

final class VectorTests: XCTestCase {
    let vectors = try! Vectors.load()

    func testPhilox() {
        for v in vectors.philox {
            let c = v.counter
            let words = philox(key: (v.key[0], v.key[1]), counter: (c[0], c[1], c[2], c[3]))
            XCTAssertEqual([words.0, words.1, words.2, words.3], v.words)
        }
    }

    func testUniforms() {
        for v in vectors.uniforms { XCTAssertEqual(uniform(v.word), v.uniform) }
    }

    func testBoxMuller() {
        for v in vectors.box_muller {
            let (a, b) = (boxMuller(v.words[0], v.words[1]), boxMuller(v.words[2], v.words[3]))
            close([a.0, a.1, b.0, b.1], v.values)
        }
    }

    func testNormals() {
        for v in vectors.normals {
            let count = v.shape.reduce(1, *)
            close(noise(count: count, seed: UInt64(v.seed)!, image: v.image, draw: v.draw, stream: v.stream), v.values)
        }
    }

    func testSpacing() {
        for v in vectors.spacing {
            XCTAssertEqual(spacedTimesteps(total: vectors.alphas_cumprod.count, steps: v.steps), v.timesteps)
        }
    }

    func testTables() {
        for v in vectors.tables {
            let timesteps = v.timesteps ?? spacedTimesteps(total: vectors.alphas_cumprod.count, steps: v.steps)
            let table = rows(
                vectors.alphas_cumprod, sampler: v.sampler, timesteps: timesteps, clip: v.clip,
                interval: v.interval.map { $0[0]...$0[1] })
            agree(table, v.rows)
        }
    }

    func testDigests() {
        for v in vectors.digests {
            let raw = Data(v.text.utf8)
            XCTAssertEqual(Manifest.digest(of: raw), v.digest)
            XCTAssertEqual(v.text.contains(v.digest), v.accepted)
        }
        XCTAssertNil(Manifest.digest(of: Data("{}".utf8)))
    }

    func testPixels() {
        for v in vectors.pixels { XCTAssertEqual(pixel(v.value), v.byte) }
        XCTAssertEqual(pixels([-1, 1, 0, 0, 1, -1], shape: [3, 1, 2]), [0, 128, 255, 255, 128, 0])
    }

    func testLoops() throws {
        for v in vectors.loops {
            let step = ToyStep(nullLabel: v.null_label)
            let images = try v.run(vectors.alphas_cumprod).sample(with: step) { _ in true }
            XCTAssertEqual(step.calls.count, v.trace.count)
            let size = v.shape.reduce(1, *)
            for (call, wanted) in zip(step.calls, v.trace) {
                XCTAssertEqual(call.row.guided ? "guided" : "unguided", wanted.graph)
                XCTAssertEqual(call.row.t, wanted.t)
                XCTAssertEqual(call.labels, wanted.images.map { v.labels[Int($0 - v.first)] })
                let drawn = wanted.images.flatMap { image in
                    wanted.draw.map { noise(count: size, seed: UInt64(v.seed)!, image: image, draw: $0) }
                        ?? [Float](repeating: 0, count: size)
                }
                XCTAssertEqual(call.noise, drawn)
                near(call.xNext, wanted.x_next.flatMap { $0 })
                near(call.denoised, wanted.denoised.flatMap { $0 })
            }
            let finished = v.trace.filter { $0.t == 0 }.flatMap(\.x_next)
            XCTAssertEqual(images.count, v.labels.count)
            near(images.flatMap { $0 }, finished.flatMap { $0 })
        }
    }
}

/// Within one unit in the last place of float32.
func close(_ got: [Float], _ expected: [Float], line: UInt = #line) {
    XCTAssertEqual(got.count, expected.count, line: line)
    for (a, b) in zip(got, expected) {
        XCTAssertLessThanOrEqual(abs(a - b), b.ulp, "\(a) for \(b)", line: line)
    }
}

/// Within 1e-5 of the largest value.
func near(_ got: [Float], _ expected: [Float], line: UInt = #line) {
    XCTAssertEqual(got.count, expected.count, line: line)
    let bound = 1e-5 * expected.reduce(0) { max($0, abs($1)) }
    for (a, b) in zip(got, expected) { XCTAssertLessThanOrEqual(abs(a - b), bound, "\(a) for \(b)", line: line) }
}

func agree(_ table: [Row], _ expected: [Row], line: UInt = #line) {
    XCTAssertEqual(table.count, expected.count, line: line)
    for (row, wanted) in zip(table, expected) {
        XCTAssertEqual([row.t], [wanted.t], line: line)
        XCTAssertEqual([row.guided, row.noisy], [wanted.guided, wanted.noisy], line: line)
        close(row.coef, wanted.coef, line: line)
    }
}
