// SPDX-License-Identifier: LGPL-2.1-or-later
#version 3.7;
global_settings { assumed_gamma 1.0 max_trace_level 20 radiosity { count 100 error_bound 0.3 } }
camera { location <0, 3, -8> look_at <0, 1, 0> }
light_source { <10, 12, -10> rgb 1 area_light <2,0,0>, <0,2,0>, 9, 9 adaptive 1 jitter }
plane { y, 0 pigment { checker rgb 0.9, rgb 0.2 } finish { reflection 0.2 } }
#declare S = seed(7);
#declare I = 0;
#while (I < 3000)
  sphere { <rand(S)*14-7, rand(S)*3, rand(S)*14-4>, 0.1 + 0.15*rand(S)
    pigment { rgbt <rand(S), rand(S), rand(S), 0.4> } finish { specular 0.6 reflection 0.25 }
    interior { ior 1.4 } }
  #declare I = I + 1;
#end
