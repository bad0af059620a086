% SPDX-License-Identifier: LGPL-2.1-or-later
% A field that spreads by its spectrum, and the factors of a matrix of which a few columns change.
rand("seed", 7);
randn("seed", 7);
n = 1000;
a = rand(n) + n * eye(n);
b = rand(n, 4);
field = rand(1024);
wave = [0:511, -512:-1];
decay = exp(-1e-6 * (wave .^ 2 + wave' .^ 2));
while true
  a(:, randi(n, 1, 8)) += 0.01 * randn(n, 8);
  [l, u, p] = lu(a);
  b += 0.001 * (u \ (l \ (p * b)));
  rows = randi(1024, 1, 4);
  field(rows, :) += randn(4, 1024);
  field = real(ifft2(fft2(field) .* decay));
end
